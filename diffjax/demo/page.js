// Behaviour of the page that needs no server: enlarged images, and the slider of a trajectory.
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
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.enlarge");
    if (button) show(button);
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
