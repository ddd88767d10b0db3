"""Logic of the page: forms and flags, jobs, sessions, uploads and HTML, without a browser and without models."""

import dataclasses
import html as standard_html
import json
import math
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

gr = pytest.importorskip("gradio")

from diffjax.demo import app, html, output  # noqa: E402
from diffjax.demo.compare import with_condition  # noqa: E402
from diffjax.demo.edit import edit_flags  # noqa: E402
from diffjax.demo.explore import frames, read_axes, suggested_values  # noqa: E402
from diffjax.demo.form import Form  # noqa: E402
from diffjax.demo.html import Figure  # noqa: E402
from diffjax.demo.session import MAX_BYTES, Session, Sessions  # noqa: E402
from diffjax.demo.widgets import Page, Progress, run_job  # noqa: E402
from diffjax.errors import UserError  # noqa: E402
from tests.command_line import refused  # noqa: E402
from tests.demo.fake_engine import DIFFUSION, PIPELINE, FakeEngine  # noqa: E402


def form_of(capabilities) -> Form:
    with gr.Blocks(analytics_enabled=False):
        form = Form(capabilities.name, capabilities)
        form.add_settings()
    return form


def values_of(form: Form, **changes) -> list:
    """Returns the values of an untouched form, with changes by the label of the control."""
    labels = [component.label for component in form.components]
    assert changes.keys() <= set(labels), labels
    return [changes.get(label, component.value) for label, component in zip(labels, form.components, strict=True)]


def test_untouched_controls_set_no_flags():
    form = form_of(DIFFUSION)
    assert form.flags(values_of(form)) == {"num": "16", "seed": "0"}


def test_controls_set_their_flags():
    form = form_of(DIFFUSION)
    changes = {"Class": "3", "Steps": 20, "Guidance": 2.3000000000000003, "Sampler": "dpmpp_2m", "Images": 4, "Seed": 7}
    flags = form.flags(values_of(form, **changes, **{"Checkpoint (training step)": "500"}))
    expected = {"num": "4", "seed": "7", "label": "3", "checkpoint": "500"}
    assert flags == expected | {"sampler": "dpmpp_2m", "steps": "20", "guidance": "2.3"}


def test_settings_of_stages_name_their_stage():
    form = form_of(PIPELINE)
    changes = {"Prompt": " a red\ncircle ", "Prior": "ar", "Steps of prior": 10, "Steps of decoder": 5}
    flags = form.flags(values_of(form, **changes, **{"Best of (by CLIP)": 8, "Guidance of decoder": 2.0}))
    expected = {"num": "16", "seed": "0", "prompt": "a red circle", "best_of": "8", "prior": "ar"}
    assert flags == expected | {"steps": "prior:10,decoder:5", "guidance": "decoder:2"}


@pytest.mark.parametrize("capabilities", [DIFFUSION, PIPELINE], ids=["diffusion", "pipeline"])
def test_flags_come_back_as_the_values_of_controls(capabilities):
    form = form_of(capabilities)
    if capabilities is DIFFUSION:
        changes = {"Class": "3", "Steps": 20, "Eta": 0.5, "Sampler": "edm(churn=40)", "Seed": 7}
    else:
        changes = {"Prompt": "a red circle", "Negative prompt": "blue"}
        changes |= {"Steps of prior": 10, "Guidance of decoder": 2.5, "Candidates": 4}
    values = values_of(form, **changes)
    assert form.values(form.flags(values)) == values


def test_a_limit_that_is_off_has_an_empty_control():
    """The truncation of a GAN is infinite unless it is set."""
    form = form_of(dataclasses.replace(DIFFUSION, settings={"truncation": math.inf}))
    assert all(part.preprocess(value) == value for part, value in zip(form.components, values_of(form), strict=True))
    assert "truncation" not in form.flags(values_of(form))
    values = values_of(form, Truncation="0.7")
    assert form.flags(values)["truncation"] == "0.7" and form.values(form.flags(values)) == values


def test_settings_of_a_damaged_image_are_refused():
    with pytest.raises(UserError, match="--seed=x: must be a whole number"):
        form_of(DIFFUSION).values({"seed": "x"})


def test_flags_without_a_control_are_named():
    form = form_of(DIFFUSION)
    assert form.unknown_flags({"seed": "0", "image": "x.png", "strength": "0.5"}) == ["image", "strength"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Images": 0}, "images=0: must be a whole number from 1 to 64"),
        ({"Images": None}, "images=None: must be"),
        ({"Seed": 1.5}, "seed=1.5: must be"),
    ],
)
def test_numbers_out_of_range_are_refused(changes, message):
    form = form_of(DIFFUSION)
    with pytest.raises(UserError, match=message):
        form.flags(values_of(form, **changes))


def test_a_prompt_is_required():
    form = form_of(PIPELINE)
    with pytest.raises(UserError, match="prompt: is empty"):
        form.flags(values_of(form, Prompt="  "))
    assert "prompt" not in form.flags(values_of(form), needs_prompt=False)


def test_a_negative_prompt_is_a_flag_of_runs_that_take_one():
    form = form_of(PIPELINE)
    flags = form.flags(values_of(form, **{"Prompt": "a red circle", "Negative prompt": " blue\nsquares "}))
    assert flags["negative_prompt"] == "blue squares"
    assert "negative_prompt" not in form.flags(values_of(form, Prompt="a red circle"))
    for capabilities in (DIFFUSION, dataclasses.replace(PIPELINE, negative_prompt=False)):
        assert form_of(capabilities).unknown_flags(flags | {"prompt": "blue"}).count("negative_prompt") == 1


def test_a_second_run_takes_over_the_condition_of_the_first():
    prior, other = form_of(PIPELINE), form_of(dataclasses.replace(PIPELINE, negative_prompt=False))
    first = {"num": "4", "seed": "1", "prompt": "red", "negative_prompt": "blue", "steps": "decoder:5"}
    second = {"num": "16", "seed": "0", "prompt": "green", "steps": "decoder:9"}
    shared = {"num": "4", "seed": "1", "prompt": "red"}
    taken = with_condition(second, first, (prior, prior))
    assert taken == {**shared, "negative_prompt": "blue", "steps": "decoder:9"}
    assert with_condition(second, first, (prior, other)) == {**shared, "steps": "decoder:9"}
    assert with_condition(first, second, (prior, prior)) == {**second, "steps": "decoder:5"}  # no negative prompt
    digits = form_of(DIFFUSION)
    assert with_condition({"label": "3"}, first, (prior, digits)) == {"num": "4", "seed": "1", "label": "3"}
    assert with_condition({"label": "3"}, {"seed": "1"}, (digits, digits)) == {"seed": "1"}  # all classes


def test_a_random_seed_is_in_the_flags():
    form = form_of(DIFFUSION)
    seeds = {form.flags(values_of(form, **{"Random seed": True}))["seed"] for _ in range(5)}
    assert len(seeds) > 1


def test_a_job_reports_progress_and_returns_its_result():
    def work(report):
        report("half")
        time.sleep(0.5)
        return 42

    states = list(run_job(work, threading.Event()))
    assert states[-1] == 42 and all(isinstance(state, Progress) for state in states[:-1])
    assert states[0].report == "half" and 0.1 < states[0].seconds < 2


def test_an_abandoned_job_is_stopped():
    stop = threading.Event()
    job = run_job(lambda report: stop.wait(10), stop)
    next(job)
    job.close()
    assert stop.is_set()


def page(tmp_path, engine=None) -> Page:
    return Page(engine or FakeEngine(), Sessions(tmp_path), None)


def test_images_are_shown_and_in_the_history_with_their_settings(tmp_path):
    this = page(tmp_path)
    session = this.sessions["tab"]
    updates = list(output.sample(this, session, "digits", {"num": "3", "seed": "5"}))
    status, images, command = updates[-1]
    assert "3 images in 1.0 s" in status and images.count("<figure>") == 3
    assert "<code>python launch.py sample --num=3 --seed=5</code>" in command
    assert [entry.caption for entry in session.history] == ["0 · seed 5", "1 · seed 6", "2 · seed 7"]
    for i, entry in enumerate(session.history):
        assert (np.asarray(Image.open(entry.path)) == 5 + i).all()
        assert this.engine.restore(entry.path) == ("digits", {"num": "3", "seed": "5"})


def test_an_error_is_a_line_and_the_next_request_works(tmp_path, capsys):
    this = page(tmp_path)
    session = this.sessions["tab"]
    (status, *_) = list(output.sample(this, session, "digits", {"num": "1", "seed": "666"}))[-1]
    assert 'role="alert"' in status and "--steps=0: must be a whole number" in status
    (status, *_) = list(output.sample(this, session, "digits", {"num": "1", "seed": "667"}))[-1]
    assert "internal error (ValueError: a bug)" in status and "Traceback" in capsys.readouterr().err
    (status, *_) = list(output.sample(this, session, "digits", {"num": "1", "seed": "0"}))[-1]
    assert "1 image in" in status


def test_a_stopped_job_says_so(tmp_path):
    this = page(tmp_path)
    session = this.sessions["tab"]
    session.stop.set()
    (status, *_) = list(output.sample(this, session, "digits", {"num": "1", "seed": "0"}))[-1]
    assert "stopped" in status and "alert" not in status and not session.history


def test_scores_and_notes_are_shown(tmp_path):
    this = page(tmp_path)
    flags = {"num": "1", "seed": "0", "prompt": "<b>&", "best_of": "4", "guidance": "1"}
    (_, images, _) = list(output.sample(this, this.sessions["tab"], "unclip", flags))[-1]
    assert "CLIP 0.250" in images and "--guidance=1: has no effect" in images
    assert "<b>" not in images and "&lt;b&gt;&amp;" in images


def test_tabs_have_their_own_sessions_and_files(tmp_path):
    this = page(tmp_path)
    one, two = this.sessions["one"], this.sessions["two"]
    for session, seed in ((one, "1"), (two, "2")):
        list(output.sample(this, session, "digits", {"num": "1", "seed": seed}))
    assert one.folder != two.folder and this.sessions["one"] is one
    assert [entry.flags["seed"] for session in (one, two) for entry in session.history] == ["1", "2"]


def test_files_of_a_closed_tab_are_deleted_after_the_grace(tmp_path):
    sessions = Sessions(tmp_path, grace=0.2)
    folder = sessions["tab"].new_file(".png").parent
    assert folder.is_dir()
    sessions.close("tab")
    assert sessions["tab"].folder == folder  # it came back in time
    time.sleep(0.4)
    assert folder.is_dir()
    sessions.close("tab")
    time.sleep(0.6)
    assert not folder.exists() and len(sessions) == 0


def upload(tmp_path, content: bytes | Image.Image, name="x.png"):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save(path)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not an image", "upload: is not an image"),
        (b"\0" * (MAX_BYTES + 1), "upload: 10.0 MB; must be at most 10 MB"),
        (Image.new("1", (4097, 4096)), "upload: 4097 x 4096 pixels; must be at most"),
        (Image.new("1", (20_000, 20_000)), "upload: too many pixels|upload: 20000 x 20000 pixels"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "upload: is not an image"),
    ],
    ids=["text", "bytes", "pixels", "bomb", "svg"],
)
def test_uploads_are_limited(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        Session(tmp_path).keep_upload(upload(tmp_path, content))


def test_a_command_names_uploads_as_on_the_users_machine(tmp_path):
    session = Session(tmp_path / "sessions")
    path = session.keep_upload(upload(tmp_path, Image.new("L", (8, 8)), "my cat.png"))
    assert session.without_folder(f"launch.py sample --image={path},{path}") == (
        "launch.py sample --image=my_cat.png,my_cat.png"
    )


EDIT_VALUES = {
    "image": None,
    "example": "test:7",
    "image_b": None,
    "example_b": "train:0",
    "region": "left",
    "mask": None,
    "strength": 0.4,
    "resample_steps": 1,
    "interpolate": 8,
    "base_prompt": "a circle",
    "invert": True,
    "keep_fraction": 0.5,
}


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("image_to_image", {"image": "test:7", "strength": "0.4"}),
        ("inpaint", {"image": "test:7", "mask": "left"}),
        ("variations", {"image": "test:7", "invert": "true"}),
        ("interpolate_seeds", {"interpolate": "8"}),
        ("interpolate_images", {"image": "test:7,train:0", "interpolate": "8", "num": "1"}),
        ("text_diff", {"image": "test:7", "interpolate": "8", "base_prompt": "a circle", "num": "1"}),
        ("complete", {"initial_image": "test:7", "keep_fraction": "0.5"}),
    ],
)
def test_each_edit_has_its_flags(tmp_path, kind, flags):
    assert edit_flags(kind, EDIT_VALUES, Session(tmp_path)) == flags


@pytest.mark.parametrize("example", ["/etc/passwd", "../x.png", "test:7,/etc/passwd", "test:-1", "other:1", "http://x"])
def test_no_path_is_read_from_the_page(tmp_path, example):
    with pytest.raises(UserError, match="must be a split and a number"):
        edit_flags("image_to_image", {**EDIT_VALUES, "example": example}, Session(tmp_path))
    with pytest.raises(UserError, match="region="):
        edit_flags("inpaint", {**EDIT_VALUES, "region": example}, Session(tmp_path))


def test_a_painted_mask_is_white_where_it_is_painted(tmp_path):
    layer = np.zeros((64, 64, 4), np.uint8)
    layer[:, :32] = (255, 63, 127, 255)
    session, values = Session(tmp_path), {**EDIT_VALUES, "region": "painted below", "mask": {"layers": [layer]}}
    mask = np.asarray(Image.open(edit_flags("inpaint", values, session)["mask"]))
    assert (mask[:, :32] == 255).all() and (mask[:, 32:] == 0).all()
    with pytest.raises(UserError, match="nothing is painted"):
        edit_flags("inpaint", {**values, "mask": {"layers": [np.zeros_like(layer)]}}, session)


def test_axes_are_flags_and_values():
    settings = form_of(DIFFUSION).settings
    x, y = read_axes(settings, ["Steps", "5, 10", "Sampler", "ddim(eta=0.5), dpmpp_2m"])
    assert x == ("steps", ["5", "10"]) and y == ("sampler", ["ddim(eta=0.5)", "dpmpp_2m"])
    assert read_axes(settings, ["Steps", "5", "none", ""])[1] is None
    stages = form_of(PIPELINE).settings
    assert read_axes(stages, ["Steps of decoder", "5,10", "none", ""])[0] == ("steps", ["decoder:5", "decoder:10"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["Steps", " , ", "none", ""], "columns: have no values"),
        (["", "1", "none", ""], "columns: have no setting"),
        (["Steps", "1,2", "Steps", "3"], "rows: vary --steps, as the columns do"),
        (["Steps", ",".join("123456789"), "Eta", ",".join("123456789")], "values: make 81 images"),
    ],
)
def test_axes_that_cannot_be_sampled_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        read_axes(form_of(DIFFUSION).settings, values)


@pytest.mark.parametrize("capabilities", [DIFFUSION, PIPELINE], ids=["diffusion", "pipeline"])
def test_every_setting_has_values_to_start_with(capabilities):
    for setting in form_of(capabilities).settings:
        assert suggested_values(setting)


def test_a_trajectory_has_a_frame_per_step():
    trajectory = FakeEngine().trajectory("digits", {"num": "1", "seed": "0"})
    shown = frames(trajectory)
    assert shown.count('class="step"') == 5 and shown.count(" hidden") == 4 and shown.count("<img") == 20
    assert 'max="5"' in shown


@pytest.mark.parametrize(("value", "text"), [(12, "12"), (756_417, "756K"), (35_746_307, "35.7M"), (2e9, "2B")])
def test_numbers_of_parameters_are_short(value, text):
    assert html.short_number(value) == text


def test_html_of_users_text_is_escaped():
    text = "<script>\"'&{{x}}${1+1}"
    figure = html.figure(Figure("a.png", text, text, text, text, 1), has_actions=True)
    for shown in (
        figure,
        html.error(text),
        html.status(text),
        html.notes([text]),
        html.command(text),
        html.table([], [text], [text], text),
    ):
        assert "<script>" not in shown and standard_html.escape(text) in shown


@pytest.fixture(scope="module")
def served():
    with app.serving(FakeEngine(), port=None) as address:
        yield address


def response(address: str, path: str, data: bytes | None = None, **headers) -> tuple[int, bytes]:
    request = urllib.request.Request(f"{address}{path}", data=data, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_page_is_served_without_requests_elsewhere(served):
    status, page = response(served, "")
    assert status == 200 and b"fonts.googleapis.com/css" not in page
    config = json.loads(response(served, "config")[1])
    assert not config["analytics_enabled"] and not config.get("is_space")


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd",
        "gradio_api/file=setup.py",
        "gradio_api/file=http://example.com/",
        "gradio_api/proxy=http://example.com/",
        "gradio_api/info",
        "gradio_api/openapi.json",
        "gradio_api/call/select",
        "docs",
        "monitoring",
    ],
)
def test_no_other_file_or_function_is_served(served, path):
    assert response(served, path)[0] in (403, 404)


def test_functions_cannot_be_called_with_paths_outside_the_uploads(served):
    """gradio refuses a file of the page's data that was not uploaded."""
    config = json.loads(response(served, "config")[1])
    restore = next(d for d in config["dependencies"] if any(target[1] == "upload" for target in d["targets"]))
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    body = {"fn_index": restore["id"], "session_hash": "test", "data": [file]}
    json_type = {"Content-Type": "application/json"}
    assert response(served, "gradio_api/queue/join", json.dumps(body).encode(), **json_type)[0] == 200
    events = response(served, "gradio_api/queue/data?session_hash=test")[1].decode()
    assert '"success":false' in events and "root:" not in events


def test_large_uploads_are_refused(served):
    boundary = "x"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'.encode()
    body = head + b"\0" * (MAX_BYTES + 1) + f"\r\n--{boundary}--\r\n".encode()
    content_type = f"multipart/form-data; boundary={boundary}"
    assert response(served, "gradio_api/upload", body, **{"Content-Type": content_type})[0] == 413


def test_a_port_in_use_is_one_line(served):
    port = int(served.rstrip("/").rpartition(":")[2])
    with pytest.raises(UserError, match=f"--port={port}: cannot be used"), app.serving(FakeEngine(), port=port):
        pass


def test_the_verb_names_what_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'diffjax[demo]'" in refused(capsys, "demo", "--workdir=runs/digits")
