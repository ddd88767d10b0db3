"""Makes the images of docs/demo.md: the demo in Chromium, on a trained run of configs/digits.py.

pip install -e '.[browser]' && python docs/demo_figures.py runs/digits [CHROMIUM]
"""

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

from diffjax import xla_flags

FIGURES = Path(__file__).parent / "figures"
PATIENCE = 300_000  # milliseconds


def visible(locator: Locator) -> Locator:
    return locator.locator("visible=true").first


def click(page: Page, name: str) -> None:
    visible(page.get_by_role("button", name=name, exact=True)).click()


def fill(page: Page, label: str, value: object) -> None:
    control = visible(page.get_by_label(label, exact=True))
    control.fill(str(value))
    control.blur()


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def save(page: Page, name: str, height: int) -> None:
    """Saves the top of the page."""
    page.set_viewport_size({"width": page.viewport_size["width"], "height": height})
    page.mouse.move(0, 0)
    page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_timeout(700)
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    path = FIGURES / f"demo_{name}.png"
    image.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main(run: str, chromium: str | None) -> None:
    from diffjax.cli.sample import parse_flags
    from diffjax.demo import app
    from diffjax.demo.engine import Engine

    with sync_playwright() as playwright, app.serving(Engine([run], parse_flags), port=None) as address:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 900})
        page.set_default_timeout(60_000)
        page.goto(address)
        fill(page, "Images", 20)
        click(page, "Generate")
        expect(page.get_by_text("20 images in")).to_be_visible(timeout=PATIENCE)
        click(page, "Generate")
        page.wait_for_timeout(500)
        expect(page.get_by_text("20 images in")).to_be_visible(timeout=PATIENCE)
        save(page, "generate", 1000)

        tab(page, "Explore")
        fill(page, "Columns: values, separated by commas", "2, 5, 10, 20, 50")
        fill(page, "Rows: values, separated by commas", "1, 2, 4")
        click(page, "Sample the table")
        expect(page.locator(".image_table img").first).to_be_visible(timeout=PATIENCE)
        save(page, "explore", 1060)
        tab(page, "Trajectory")
        click(page, "Sample one trajectory")
        slider = page.get_by_role("slider", name="Step of the trajectory")
        expect(slider).to_be_visible(timeout=PATIENCE)
        slider.fill("32")
        save(page, "trajectory", 840)

        tab(page, "Generate")
        fill(page, "Images", 8)
        tab(page, "Edit")
        source = page.locator(".images img").first.get_attribute("src")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "digit.png"
            path.write_bytes(page.request.get(f"{address}{source}").body())
            fill(page, "Images", 8)
            page.get_by_label("Inpainting").check()
            page.locator(".edit_image input[type=file]").first.set_input_files(path)
            page.wait_for_timeout(1_500)
        canvas = visible(page.locator("canvas"))
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box is not None
        for row in (0.6, 0.7, 0.8):
            page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + row * box["height"])
            page.mouse.down()
            page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + row * box["height"], steps=8)
            page.mouse.up()
        click(page, "Edit")
        expect(page.get_by_role("link", name="mask.png")).to_be_visible(timeout=PATIENCE)
        expect(page.get_by_text("8 images in")).to_be_visible(timeout=PATIENCE)
        save(page, "edit", 1300)

        tab(page, "Compare")
        page.get_by_role("combobox", name="First checkpoint (step)").click()
        page.get_by_role("option", name="500").click()
        click(page, "Compare")
        expect(page.locator(".side_by_side section").first).to_be_visible(timeout=PATIENCE)
        save(page, "compare", 860)
        tab(page, "History")
        save(page, "history", 900)
        page.set_viewport_size({"width": 390, "height": 844})
        tab(page, "Generate")
        save(page, "narrow", 844)
        browser.close()


if __name__ == "__main__":
    xla_flags.configure()
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else shutil.which("chromium"))
