// Behaviour of the page that needs no server: enlarged images, copied commands, and the slider of a trajectory.
(() => {
  const dialog = document.createElement("dialog");
  dialog.className = "enlarged";
  dialog.setAttribute("aria-label", "Enlarged image");
  dialog.innerHTML = '<button type="button" class="close" aria-label="Close">Close</button><img alt=""><p></p>';
  const show = (button) => {
    const source = button.querySelector("img");
    const image = dialog.querySelector("img");
    image.src = source.src;
    image.alt = source.alt;
    dialog.querySelector("p").textContent = button.dataset.details || source.alt;
    if (!dialog.isConnected) document.body.append(dialog);
    dialog.showModal();
  };
  const copy = async (button) => {
    const code = button.closest(".command").querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {  // a page without https on another host has no clipboard
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.enlarge");
    const copying = event.target.closest(".command .copy");
    if (button) show(button);
    else if (copying) copy(copying);
    else if (event.target === dialog || event.target.closest("dialog.enlarged .close")) dialog.close();
  });
  document.addEventListener("input", (event) => {
    const trajectory = event.target.closest(".trajectory");
    if (!trajectory) return;
    const step = event.target.value;
    trajectory.querySelector("output").textContent = step;
    for (const frame of trajectory.querySelectorAll(".step")) frame.hidden = frame.dataset.step !== step;
  });
})();
