"""Repositories of the Hugging Face Hub: from a server on this machine, and from a cache without network."""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse

import pytest
from safetensors.numpy import load_file

from diffjax.conversion import source_files
from tests.command_line import launch, refused
from tests.conversion import folders

huggingface_hub = pytest.importorskip("huggingface_hub")
from huggingface_hub import constants  # noqa: E402

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "owner/small-ddpm"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return folders.write_pipeline(tmp_path_factory.mktemp("hub") / "pipeline")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Returns an empty cache of huggingface_hub, whose Hub cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    use_server(monkeypatch, "http://127.0.0.1:9")
    return tmp_path / "cache"


def use_server(monkeypatch, url):
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def fill(cache, pipeline):
    """Writes a cache as huggingface_hub does, with links to blobs."""
    repository = cache / "models--owner--small-ddpm"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for file in pipeline.rglob("*.*"):
        blob = repository / "blobs" / hashlib.sha256(str(file).encode()).hexdigest()
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(file.read_bytes())
        link = repository / "snapshots" / COMMIT / file.relative_to(pipeline)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)


@contextlib.contextmanager
def hub(files, status=200, code=""):
    """Yields the address of a Hub with one repository, and the files that were downloaded."""
    downloaded = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def reply(self, status, content=b"", **headers):
            self.send_response(status)
            for name, value in {"Content-Length": len(content), **headers}.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_GET(self):
            path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
            if status != 200:
                return self.reply(status, b"{}", X_Error_Code=code, X_Error_Message="no")
            if path.startswith(f"/api/models/{NAME}/tree/"):
                tree = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()]
                return self.reply(200, json.dumps(tree).encode())
            if path.startswith(f"/api/models/{NAME}"):
                siblings = [{"rfilename": name} for name in files]
                return self.reply(200, json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode())
            name = path.partition(f"/{COMMIT}/")[2]
            if name not in files:
                return self.reply(404, b"{}")
            if self.command == "GET":
                downloaded.append(name)
            etag = hashlib.sha256(files[name]).hexdigest()
            return self.reply(200, files[name], ETag=f'"{etag}"', X_Repo_Commit=COMMIT)

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", downloaded
    finally:
        server.shutdown()
        server.server_close()


def test_a_repository_is_downloaded_without_the_files_that_an_import_does_not_read(
    pipeline, cache, tmp_path, monkeypatch
):
    files = {file.relative_to(pipeline).as_posix(): file.read_bytes() for file in pipeline.rglob("*.*")}
    others = [
        "README.md",
        "a.ckpt",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    ]
    others += [
        "unet/model.onnx",
        "safety_checker/model.safetensors",
        "unet/a/b.json",
        "unet/diffusion_flax_model.msgpack",
    ]
    with hub({**files, **dict.fromkeys(others, b"{}")}) as (url, downloaded):
        use_server(monkeypatch, url)
        assert launch("import", f"--source=hub:{NAME}", f"--workdir={tmp_path / 'run'}") == 0
    assert sorted(downloaded) == sorted(files)
    record = json.loads((tmp_path / "run" / "source.json").read_text())
    assert (record["repository"], record["revision"]) == (NAME, COMMIT)
    assert record["sha256"] == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    use_server(monkeypatch, "http://127.0.0.1:9")  # the cache has the rest
    assert launch("import", f"--source=hub:{NAME}@main", f"--workdir={tmp_path / 'again'}") == 0
    assert (tmp_path / "again" / "weights.safetensors").read_bytes() == (
        tmp_path / "run" / "weights.safetensors"
    ).read_bytes()


def test_a_cache_is_imported_without_network(pipeline, cache, tmp_path, monkeypatch):
    fill(cache, pipeline)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert launch("import", f"--source={pipeline}", f"--workdir={tmp_path / 'folder'}") == 0
    assert launch("import", f"--source=hub:{NAME}", f"--workdir={tmp_path / 'hub'}") == 0
    assert launch("import", f"--source=hub:{NAME}/unet@{COMMIT}", f"--workdir={tmp_path / 'unet'}") == 0
    expected = load_file(tmp_path / "folder" / "weights.safetensors")
    for run in ("hub", "unet"):
        actual = load_file(tmp_path / run / "weights.safetensors")
        assert all((actual[name] == array).all() for name, array in expected.items())
        assert json.loads((tmp_path / run / "source.json").read_text())["revision"] == COMMIT


@pytest.mark.parametrize("offline", [True, False])
def test_a_repository_that_is_not_in_the_cache_is_one_line(cache, tmp_path, monkeypatch, capsys, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    error = refused(capsys, "import", f"--source=hub:{NAME}", f"--workdir={tmp_path / 'run'}")
    assert "not complete in the cache" in error and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "status, code, message",
    [
        (403, "GatedRepo", "is gated"),
        (401, "", "401; check your token"),
        (404, "RepoNotFound", "does not exist, or is private"),
        (404, "RevisionNotFound", "has no revision main"),
        (403, "", "403; check your token"),
        (500, "", "500; try again later"),
    ],
)
def test_a_refusal_of_the_hub_is_one_line(cache, tmp_path, monkeypatch, capsys, status, code, message):
    with hub({}, status, code) as (url, _):
        use_server(monkeypatch, url)
        assert message in refused(capsys, "import", f"--source=hub:{NAME}", f"--workdir={tmp_path / 'run'}")


@pytest.mark.parametrize(
    "source, message",
    [
        ("hub:", "must be hub:OWNER/NAME"),
        ("hub:name", "must be hub:OWNER/NAME"),
        ("hub:a/b@", "must be hub:OWNER/NAME"),
        ("hub:--a--/b", "not the name of a repository"),
    ],
)
def test_an_invalid_name_is_one_line(cache, tmp_path, capsys, source, message):
    assert message in refused(capsys, "import", f"--source={source}", f"--workdir={tmp_path / 'run'}")


def test_a_repository_of_single_files_lists_them(cache, tmp_path, monkeypatch, capsys):
    with hub({"v1-5.ckpt": b"", "README.md": b""}) as (url, _):
        use_server(monkeypatch, url)
        error = refused(capsys, "import", f"--source=hub:{NAME}", f"--workdir={tmp_path / 'run'}")
        assert "name a file of it: v1-5.ckpt" in error
        error = refused(capsys, "import", f"--source=hub:{NAME}/v1-5.ckpt", f"--workdir={tmp_path / 'run'}")
    assert "is a single file" in error


def test_a_missing_library_is_one_line(cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    error = refused(capsys, "import", f"--source=hub:{NAME}", f"--workdir={tmp_path / 'run'}")
    assert "pip install 'diffjax[hf]'" in error


@pytest.mark.parametrize("small_disk", [1], indirect=True)
def test_a_full_disk_is_one_line(cache, small_disk, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(small_disk / "cache"))
    files = {"config.json": b"{}", "diffusion_pytorch_model.safetensors": bytes(2**21)}
    with hub(files) as (url, _):
        use_server(monkeypatch, url)
        assert launch("import", f"--source=hub:{NAME}", f"--workdir={tmp_path / 'run'}") == 2
    error = capsys.readouterr().err.splitlines()[-1]  # after the bars of progress
    assert "no space in" in error and "set HF_HOME" in error


def test_shards_are_selected_with_their_index():
    names = [
        *("config.json", "diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.bin"),
        *(f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)),
        *(f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)),
    ]
    assert source_files.select(names) == sorted([*names[:2], *names[3:5]])
    fp16 = ["diffusion_pytorch_model.safetensors.index.fp16.json", *names[5:], names[3]]
    assert source_files.select(fp16) == sorted(fp16[:3])
