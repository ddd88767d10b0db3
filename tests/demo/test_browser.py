"""The demo in Chromium, driven by a person's steps on a tiny trained run."""

import os
import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")

from diffjax.demo import app  # noqa: E402
from tests.demo.fake_engine import FakeEngine  # noqa: E402

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="there is no chromium; set CHROMIUM to its path"),
]
expect = sync_api.expect
PATIENCE = 120_000  # ms for the first images, which compile a program


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(trained_runs, tmp_path_factory):
    """The page of a run with two names, so that runs can be compared."""
    from diffjax.cli.sample import parse_flags
    from diffjax.demo.engine import Engine

    other = trained_runs.copy("pixel", tmp_path_factory.mktemp("copy") / "other")
    with app.serving(Engine([str(trained_runs("pixel")), str(other)], parse_flags), port=None) as address:
        yield address


@pytest.fixture(scope="module")
def slow_address():
    """The page of an engine without models, whose requests take two seconds."""
    with app.serving(FakeEngine(num_steps=20, seconds=2.0), port=None, grace=0.1) as address:
        yield address


@pytest.fixture
def page(browser, address):
    with opened(browser, address) as page:
        yield page


class opened:
    """A page in a browser of its own; at its end it has had no error and made no request to another host."""

    def __init__(self, browser, address, **viewport):
        self._context = browser.new_context(viewport={"width": 1200, "height": 900} | viewport, accept_downloads=True)
        self._context.grant_permissions(["clipboard-read", "clipboard-write"])
        self._address, self._errors, self._elsewhere = address, [], []

    def __enter__(self):
        page = self._context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: self._errors.append(str(error)))
        page.on("request", self._note)
        page.goto(self._address)
        expect(page.get_by_role("button", name="Generate")).to_be_visible()
        return page

    def __exit__(self, *_):
        self._context.close()
        assert not self._errors and not self._elsewhere

    def _note(self, request):
        if not request.url.startswith((self._address.rstrip("/"), "data:", "blob:")):
            self._elsewhere.append(request.url)


def tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def fill(page, label, value):
    control = page.get_by_label(label, exact=True).locator("visible=true").first
    control.fill(str(value))
    control.blur()


def choose(page, label, option):
    page.get_by_role("combobox", name=label, exact=True).locator("visible=true").click()
    page.get_by_role("option", name=option, exact=True).click()


def generate(page, count=4, **fields):
    """Fills the form of Generate and waits for its images."""
    fill(page, "Images", count)
    for label, value in fields.items():
        fill(page, label, value)
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_text(re.compile(rf"{count} images? in"))).to_be_visible(timeout=PATIENCE)


def images(page, group=".images"):
    return page.locator(f"{group} img").locator("visible=true")


def pixels(page, index=0) -> np.ndarray:
    """Returns the pixels of an image of the page, as its browser received them."""
    source = images(page).nth(index).get_attribute("src")
    content = page.request.get(source if "://" in source else f"{page.url.split('?')[0]}{source}").body()
    path = f"/tmp/{os.getpid()}.png"
    with open(path, "wb") as file:
        file.write(content)
    return np.asarray(Image.open(path))


def copied(page) -> str:
    """Copies the command of the page, and returns it from the clipboard."""
    page.get_by_role("button", name="Copy", exact=True).locator("visible=true").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    return page.evaluate("navigator.clipboard.readText()")


def launch(*arguments) -> int:
    from tests import command_line

    return command_line.launch(*arguments)


def test_generate_shows_images_and_the_command_that_samples_them_again(page, tmp_path):
    choose(page, "Class", "3")
    generate(page, 2, Seed=5)
    expect(images(page)).to_have_count(2)
    expect(page.get_by_text("3 · seed 5")).to_be_visible()
    command = copied(page)
    flags = re.findall(r"(?:^| )(--\w+=\S+)", command)
    assert {"--num=2", "--seed=5", "--label=3"} <= set(flags)
    assert launch("sample", *flags, f"--out={tmp_path}/") == 0
    for i in range(2):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"0000{i}.png")), pixels(page, i))


def test_an_image_is_enlarged_by_the_keyboard_and_saved_with_its_settings(page, tmp_path):
    generate(page, 1, Seed=3)
    page.get_by_role("button", name=re.compile("^Enlarge")).locator("visible=true").first.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Enlarged image")
    expect(dialog).to_be_visible()
    expect(dialog).to_contain_text("--seed=3")
    assert dialog.locator("img").bounding_box()["width"] > 200  # an 8x8 image is enlarged
    assert dialog.locator("img").evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
    page.keyboard.press("Escape")
    expect(dialog).not_to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name=re.compile("^Save ")).locator("visible=true").first.click()
    path = tmp_path / "saved.png"
    download.value.save_as(path)
    assert launch("sample", f"--from={path}", f"--out={tmp_path / 'again.png'}") == 0
    np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(tmp_path / "again.png")))
    tab(page, "Generate")
    fill(page, "Seed", 9)
    tab(page, "History")
    page.locator(".settings_file input[type=file]").first.set_input_files(path)
    expect(page.get_by_text("Generate has the settings of saved.png")).to_be_visible()
    tab(page, "Generate")
    assert page.get_by_label("Seed", exact=True).locator("visible=true").first.input_value() == "3"


def test_explore_shows_a_table_and_a_trajectory(page):
    tab(page, "Explore")
    fill(page, "Columns: values, separated by commas", "2, 4")
    fill(page, "Rows: values, separated by commas", "1, 2, 3")
    page.get_by_role("button", name="Sample the table").click()
    expect(images(page, ".image_table")).to_have_count(6, timeout=PATIENCE)
    expect(page.get_by_role("columnheader", name="4", exact=True)).to_be_visible()
    tab(page, "Trajectory")
    page.get_by_role("button", name="Sample one trajectory").click()
    slider = page.get_by_role("slider", name="Step of the trajectory")
    expect(slider).to_be_visible(timeout=PATIENCE)
    expect(images(page, ".trajectory")).to_have_count(4)
    first = images(page, ".trajectory").first.get_attribute("src")
    slider.focus()
    page.keyboard.press("End")
    expect(page.get_by_text(re.compile("Step ([2-9]|[1-9][0-9])"))).to_be_visible()
    assert images(page, ".trajectory").first.get_attribute("src") != first


def test_edit_samples_from_an_upload_a_painted_mask_and_seeds(page, tmp_path):
    upload = tmp_path / "my digit.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8)).save(upload)
    tab(page, "Edit")
    fill(page, "Images", 2)
    page.locator("input[type=file]").locator("visible=true").or_(
        page.locator("input[type=file]")
    ).first.set_input_files(upload)
    expect(page.get_by_text("as the run sees it, 8 x 8")).to_be_visible()
    page.get_by_role("button", name="Edit", exact=True).click()
    expect(page.get_by_text("2 images in")).to_be_visible(timeout=PATIENCE)
    command = copied(page)
    assert "--image=my_digit.png" in command and "--strength=0.5" in command
    page.get_by_label("Inpainting").check()
    canvas = page.locator("canvas").locator("visible=true").first
    expect(canvas).to_be_visible()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.5 * box["height"], steps=8)
    page.mouse.up()
    page.get_by_role("button", name="Edit", exact=True).click()
    expect(page.get_by_role("link", name="mask.png")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text("2 images in")).to_be_visible(timeout=PATIENCE)
    page.get_by_label("Interpolation of seeds").check()
    page.get_by_role("button", name="Edit", exact=True).click()
    expect(images(page, ".images.rows")).to_have_count(16, timeout=PATIENCE)


def test_compare_shows_two_runs_side_by_side(page):
    fill(page, "Images", 2)
    tab(page, "Compare")
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator(".side_by_side section")).to_have_count(2, timeout=PATIENCE)
    sources = [pixels(page, i) for i in range(4)]
    np.testing.assert_array_equal(sources[0], sources[2])  # the runs are copies
    np.testing.assert_array_equal(sources[1], sources[3])


def test_the_history_gives_the_settings_back(page):
    generate(page, 2, Seed=7)
    fill(page, "Seed", 1)
    tab(page, "History")
    expect(images(page)).to_have_count(2)
    page.get_by_role("button", name="Use the settings of image 1").click()
    expect(page.get_by_text("Generate has the settings of image 1")).to_be_visible()
    page.get_by_role("button", name="Edit image 2").click()
    expect(page.get_by_text("Edit has image 2")).to_be_visible()
    tab(page, "Edit")
    expect(page.get_by_text("as the run sees it, 8 x 8")).to_be_visible()
    tab(page, "Generate")
    assert page.get_by_label("Seed", exact=True).locator("visible=true").first.input_value() == "7"


def test_an_error_is_a_line_and_the_next_images_appear(page):
    tab(page, "Edit")
    page.get_by_role("button", name="Edit", exact=True).click()
    expect(page.get_by_role("alert").locator("visible=true")).to_contain_text("image: is missing")
    tab(page, "Generate")
    generate(page, 1)


def test_bad_uploads_are_one_line(page, tmp_path):
    tab(page, "History")
    (tmp_path / "text.png").write_text("not an image")
    Image.new("L", (8, 8)).save(tmp_path / "plain.png")
    drop = page.locator(".settings_file input[type=file]").first
    drop.set_input_files(tmp_path / "text.png")
    expect(page.get_by_role("alert").locator("visible=true")).to_contain_text("is not an image")
    page.get_by_label(re.compile("Remove|Clear")).locator("visible=true").first.click()
    drop.set_input_files(tmp_path / "plain.png")
    expect(page.get_by_role("alert").locator("visible=true")).to_contain_text("plain.png: has no sampling settings")


def test_two_browsers_do_not_mix_results(browser, slow_address):
    with opened(browser, slow_address) as one, opened(browser, slow_address) as two:
        for page, seed in ((one, 10), (two, 200)):
            fill(page, "Images", 1)
            fill(page, "Seed", seed)
        for page in (one, two):
            page.get_by_role("button", name="Generate", exact=True).click()
        for page, seed in ((one, 10), (two, 200)):
            expect(page.get_by_text(f"seed {seed}")).to_be_visible()
            assert (pixels(page) == seed).all()
            tab(page, "History")
            expect(images(page)).to_have_count(1)


def test_a_running_job_has_previews_and_stops(browser, slow_address):
    with opened(browser, slow_address) as page:
        page.get_by_role("button", name="Generate", exact=True).click()
        expect(page.get_by_role("progressbar", name="Progress")).to_be_visible()
        expect(page.get_by_role("group", name="Previews of the images")).to_be_visible()
        page.get_by_role("button", name="Stop", exact=True).locator("visible=true").click()
        expect(page.get_by_text("stopped")).to_be_visible(timeout=1_500)


def test_files_are_deleted_with_the_tab(browser, slow_address):
    with opened(browser, slow_address) as page:
        fill(page, "Images", 1)
        page.get_by_role("button", name="Generate", exact=True).click()
        expect(page.get_by_text("1 image in")).to_be_visible()
        source = f"{slow_address}{images(page).first.get_attribute('src')}"
        assert page.request.get(source).ok
    with opened(browser, slow_address) as page:
        for _ in range(100):
            if not page.request.get(source).ok:
                return
            time.sleep(0.2)
    raise AssertionError("the file is still served")


def test_another_run_has_its_own_controls(browser, slow_address):
    with opened(browser, slow_address) as page:
        choose(page, "Run", "unclip")
        expect(page.get_by_label("Prompt", exact=True).locator("visible=true")).to_be_visible()
        expect(page.get_by_label("Class", exact=True).locator("visible=true")).to_have_count(0)
        page.get_by_role("button", name="Stage: decoder").click()
        expect(page.get_by_label("Sampler of decoder")).to_be_visible()
        page.get_by_role("button", name="Generate", exact=True).click()
        expect(page.get_by_role("alert").locator("visible=true")).to_contain_text("prompt: is empty")
        fill(page, "Prompt", "<b>{{x}} ${1+1}")
        page.get_by_role("button", name="Generate", exact=True).click()
        expect(images(page).first).to_have_attribute("alt", "<b>{{x}} ${1+1}, seed 0")


@pytest.mark.parametrize("width", [390, 1200])
def test_no_tab_is_wider_than_the_window(browser, slow_address, width):
    with opened(browser, slow_address, width=width, height=844) as page:
        for name in ("Generate", "Explore", "Edit", "Compare", "History"):
            tab(page, name)
            page.wait_for_timeout(300)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name


def test_every_control_has_a_name(browser, slow_address):
    names = """() => [...document.querySelectorAll("input, textarea, button, select, [role=slider]")]
      .filter((e) => e.offsetParent && e.type !== "file" && !e.closest("[aria-hidden=true]"))
      .filter((e) => !(e.getAttribute("aria-label") || e.title || e.innerText?.trim() || e.labels?.length
        || e.closest("label")?.innerText.trim() || e.getAttribute("aria-labelledby")))
      .map((e) => e.outerHTML)"""
    with opened(browser, slow_address) as page:
        for name in ("Generate", "Explore", "Edit", "Compare", "History"):
            tab(page, name)
            page.wait_for_timeout(300)
            assert page.evaluate(names) == [], name
        assert page.evaluate("[...document.images].every((image) => image.alt)")


def test_every_kind_of_run_has_its_controls(browser, trained_runs):
    from diffjax.cli.sample import parse_flags
    from diffjax.demo.engine import Engine

    workdirs = {name: str(trained_runs(name)) for name in ("gan", "vae", "dalle", "unclip_all", "glide")}
    engine = Engine(list(workdirs.values()), parse_flags)
    names = dict(zip(workdirs, engine.names, strict=True))
    with app.serving(engine, port=None) as address, opened(browser, address) as page:
        for kind, name in names.items():
            if kind != "gan":  # the first
                choose(page, "Run", name)
            is_text = kind in ("dalle", "unclip_all", "glide")
            expect(page.get_by_label("Prompt", exact=True).locator("visible=true")).to_have_count(int(is_text))
            negative = page.get_by_label("Negative prompt", exact=True).locator("visible=true")
            expect(negative).to_have_count(int(is_text and kind != "dalle"))
            for part in ("Explore", "Edit", "Generate"):
                tab(page, part)
            fill(page, "Images", 2)
            if is_text:
                fill(page, "Prompt", "a small red circle")
            if kind in ("gan", "glide"):
                generate(page, 2)
                expect(images(page)).to_have_count(2)
