"""Official SDKs and frameworks, unmodified: every example against a gateway whose providers are all the simulator.

Their packages are locked and come from the ordinary registries, into a directory that stays: TOLLGATE_SDK_CACHE, or one
among the user's caches. Where a toolchain or a registry is missing, the tests that need it are skipped and say so.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from proxy.snapshot import Budget, Provider
from tests.stack import ControlPlane, Proxy, Simulator, Stack, free_port

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
REQUIREMENTS = ROOT / "requirements"
CACHE = Path(
    os.environ.get("TOLLGATE_SDK_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tollgate-sdks"
)
INSTALL_TIMEOUT_S = 600
RUN_TIMEOUT_S = 600
NODE_MIN = 18
# How pip, npm and Go say that nobody is there.
UNREACHABLE = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeoutError|Temporary failure in name resolution|ProxyError|"
    r"\b(?:ENOTFOUND|ECONNREFUSED|ETIMEDOUT|EAI_AGAIN|ECONNRESET)\b|"
    r"dial tcp|no such host|i/o timeout|TLS handshake timeout"
)

# The word in `snapshot.Provider.api` → where the simulator speaks so.
PROVIDERS = {
    "openai": "/v1",
    "anthropic": "/anthropic/v1",
    "gemini": "/gemini/v1beta",
    "bedrock": "/bedrock",
    "cohere": "/cohere",
    "mistral": "/v1",
}
OPERATIONS = ("chat", "count_tokens", "embeddings", "rerank", "images", "speech", "transcription", "moderations")

# What the simulator says, and what an example prints of it, by the word before the colon.
SAID = "Every word of this answer is one token so that whoever reads along can count what"
PRINTED = {
    "Answer": SAID,
    "Stream": SAID,
    "Told": SAID,
    "Image": SAID,
    "Response": SAID,
    "Heard": SAID,
    "Usage": r"(4|6) in, 16 out",
    "Tool": r"get_weather .*Oslo.*",
    "Called": "4 degrees, rain",
    "Schema": r".*(word|bridge).*1\.5.*",
    "Models": r".*\banthropic\b.*\bopenai\b.*",
    "Count": "4",
    "Vector": r"\[256\]",
    "Vectors": r"\[256, 256\]",
    "Ranked": r"\['a gate', 'a road'\]",
    "Drawn": r"\d+ characters of base64",
    "Speech": r"\d+ bytes",
    "Flagged": "False",
    "Batch": "completed 2 of 2",
    "Wrong key": r"401 .*this virtual key is not known: check it, or ask for a new one.*",
    "Unknown model": r"404 .*the model `a-model-nobody-registered` does not exist.*",
    "Refused": r".*the model `a-model-nobody-registered` does not exist.*",
    "Budget used up": r"429 .*budget 'nothing' of the key .* has .* left, too little for this request.*",
}
TALK = {"Answer", "Stream", "Tool", "Told"}
REFUSALS = {"Wrong key", "Unknown model", "Budget used up"}
WHOLE = TALK | REFUSALS | {"Usage", "Schema", "Image"}


class Run(NamedTuple):
    """An example, the alias it is given, and what it has to print. `counts`: the provider counts tokens for this SDK."""

    environment: str
    script: str
    model: str
    labels: set[str]
    counts: bool = False


def _runs(environment: str, script: str, models: str, labels: set[str], *, native: str = "") -> list[Run]:
    """One for each of the models; where one is `native`, it counts tokens too."""
    return [
        Run(environment, script, model, labels | ({"Count"} if model == native else set()), model == native)
        for model in models.split()
    ]


RUNS = [
    *_runs("python", "openai/chat.py", "openai anthropic gemini bedrock", WHOLE | {"Models"}),
    *_runs("python", "openai/responses.py", "openai anthropic gemini", WHOLE - REFUSALS),
    *_runs("python", "openai/media.py", "openai", {"Vectors", "Drawn", "Speech", "Heard", "Flagged"}),
    *_runs("python", "openai/batch.py", "openai", {"Batch", "Answer"}),
    *_runs("python", "anthropic/messages.py", "anthropic openai gemini", WHOLE | {"Models"}, native="anthropic"),
    *_runs("python", "google-genai/generate.py", "gemini openai", WHOLE | {"Models", "Vector"}, native="gemini"),
    *_runs("python", "cohere/chat.py", "cohere anthropic", WHOLE | {"Vectors", "Ranked"}),
    *_runs("python", "mistral/chat.py", "mistral anthropic", WHOLE | {"Models", "Vectors"}),
    *_runs("python", "langchain/chat.py", "openai anthropic", TALK | {"Usage", "Schema", "Vectors"}),
    *_runs("python", "pydantic-ai/agent.py", "openai anthropic", TALK | {"Usage", "Schema", "Image", "Unknown model"}),
    *_runs("javascript", "openai.mjs", "openai anthropic gemini", WHOLE | {"Models", "Response"}),
    *_runs("javascript", "anthropic.mjs", "anthropic openai", WHOLE | {"Models"}),
    *_runs("javascript", "google-genai.mjs", "gemini openai", WHOLE | {"Models"}),
    *_runs("javascript", "ai-sdk.mjs", "openai anthropic", WHOLE),
    *_runs("python-openai2", "openai/chat.py", "openai", WHOLE | {"Models"}),
    *_runs("python-openai2", "llamaindex/chat.py", "openai anthropic", {"Answer", "Stream", "Tool", "Called", "Image"}),
    *_runs("python-openai2", "litellm/completion.py", "openai anthropic", TALK | {"Usage", "Refused"}),
    *_runs("go", "main.go", "openai anthropic gemini", WHOLE | {"Response"}),
]
# Whoever asks for vectors asks a model that makes some.
EMBEDDERS = {"google-genai/generate.py": "gemini", "cohere/chat.py": "cohere", "mistral/chat.py": "mistral"}


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.environment}-{run.script}-{run.model}")
def test_an_example_runs_as_it_is(run, gateway, installed, tmp_path):
    command = installed[run.environment].result()(run.script, tmp_path)
    environ = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environ |= gateway.environ | {
        "TOLLGATE_MODEL": run.model,
        "TOLLGATE_EMBEDDING_MODEL": EMBEDDERS.get(run.script, "openai"),
        "TOLLGATE_RERANK_MODEL": "cohere",
        # LiteLLM looks for prices on the Internet else, whenever it is imported.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    if run.counts:
        environ["TOLLGATE_COUNTS"] = "1"
    events_before = len(gateway.events())
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = [line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line]
    told = [(label, text) for label, text in printed if label in PRINTED]
    assert [(label, text) for label, text in told if not re.fullmatch(PRINTED[label], text.strip())] == []
    assert run.labels <= {label for label, _ in told}
    # The SDK was told what the ledger says, in its own words for it.
    events = gateway.events()[events_before:]
    # A batch is in suspense until the ledger has it, and there is none here.
    assert {event.get("state", "posted") for event in events if event.get("operation") != "batch"} == {"posted"}
    usages = [event.get("usage", {}) for event in events]
    used = {f"{usage.get('input_tokens', 0)} in, {usage.get('output_tokens', 0)} out" for usage in usages}
    assert {text.strip() for label, text in told if label == "Usage"} <= used


# The gateway


class Gateway(NamedTuple):
    stack: Stack
    environ: dict[str, str]

    def events(self) -> list[dict]:
        return self.stack.control.events()


@pytest.fixture(scope="module")
def gateway(shared_redis, tmp_path_factory) -> Iterator[Gateway]:
    """An alias for each provider, named like it; a virtual key, and one whose budget is used up."""
    directory = tmp_path_factory.mktemp("gateway")
    simulator = Simulator(directory, free_port())
    control = ControlPlane(shared_redis.url, simulator.url)
    control.redis.flushall()
    for api, path in PROVIDERS.items():
        options = {"region": "eu-north-1"} if api == "bedrock" else {}
        control.providers[api] = Provider(slug=api, api=api, base_url=simulator.url + path, options=options)
        # A model whose name begins so has Mistral's ways.
        upstream_model = "mistral-sim" if api == "mistral" else "sim-fast"
        control.add_deployment(api, provider=api, upstream_model=upstream_model, operations=OPERATIONS)
        control.add_alias(api, api)
    control.publish()
    control.open()
    proxy = Proxy(directory, shared_redis.url, free_port(), workers=1)
    proxy.wait_ready()
    nothing = Budget(budget_id="nothing", name="nothing", subject={"key": "*"}, window="month", amount=1)
    yield Gateway(
        Stack(simulator, control, proxy),
        {
            "TOLLGATE_URL": proxy.url,
            "TOLLGATE_KEY": control.issue_key(),
            "TOLLGATE_SPENT_KEY": control.issue_key(budgets=(nothing,)),
        },
    )
    proxy.process.stop()
    simulator.process.stop()
    control.redis.flushall()
    control.redis.close()


# What the examples need

# The script's name and a directory of its own → how to run it.
Runner = Callable[[str, Path], list[str]]


@pytest.fixture(scope="session")
def installed(request) -> Iterator[dict[str, Future[Runner]]]:
    """Only what the chosen tests need, two at a time, while the first tests run already."""
    runs = [item.callspec.params["run"] for item in request.session.items if item.path == Path(__file__)]
    wanted = {run.environment for run in runs}
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(install) for name, install in ENVIRONMENTS.items() if name in wanted}


def install_go() -> Runner:
    if shutil.which("go") is None:
        pytest.skip("Go's SDK: there is no go here")
    source = EXAMPLES / "go"
    needed = re.search(r"^go (\S+)$", (source / "go.mod").read_text(), re.M)[1]
    version = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout.strip()
    if _numbers(version) < _numbers(needed):
        pytest.skip(f"Go's SDK: go is {version}, it needs {needed}")
    directory = _place("go", *sorted(source.iterdir()))
    # Not optimised: that takes less than half the time.
    command = ["go", "build", "-mod=readonly", "-gcflags=all=-N -l", "-ldflags=-s -w", "-o", directory / "example", "."]
    _install(
        directory,
        command,
        cwd=source,
        GOCACHE=str(CACHE / "go-build"),
        GOMODCACHE=str(CACHE / "go-modules"),
        GOTOOLCHAIN="local",
        GOFLAGS="-modcacherw",
    )
    return lambda script, own: [str(directory / "example")]


def install_python(lock: str) -> Runner:
    requirements = REQUIREMENTS / f"{lock}.txt"
    directory = _place(f"{lock}-{sys.version_info.major}.{sys.version_info.minor}", requirements)
    python = directory / "bin" / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--retries", "1", "--no-compile"]
    _install(
        directory,
        [sys.executable, "-m", "venv", "--clear", directory],
        [*pip, "--require-hashes", "-r", requirements],
    )
    return lambda script, own: [str(python), str(EXAMPLES / script)]


def install_javascript() -> Runner:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("JavaScript's SDKs: there is no node and npm here")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if _numbers(version) < (NODE_MIN,):
        pytest.skip(f"JavaScript's SDKs: node is {version.strip()}, they need {NODE_MIN}")
    source = EXAMPLES / "javascript"
    locks = source / "package.json", source / "package-lock.json"
    directory = _place("javascript", *locks)
    directory.mkdir(parents=True, exist_ok=True)
    for lock in locks:
        shutil.copy(lock, directory)
    _install(directory, ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"], cwd=directory)

    def run(script: str, own: Path) -> list[str]:
        (own / "node_modules").symlink_to(directory / "node_modules")
        return ["node", shutil.copy(source / script, own)]

    return run


# The longest first.
ENVIRONMENTS: dict[str, Callable[[], Runner]] = {
    "go": install_go,
    "python": lambda: install_python("sdks"),
    "javascript": install_javascript,
    "python-openai2": lambda: install_python("sdks-openai2"),
}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def _place(name: str, *files: Path) -> Path:
    """A directory for what is made of these files."""
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    return CACHE / f"{name}-{digest}"


def _install(directory: Path, *commands: list[str | Path], cwd: Path = ROOT, **environ: str) -> None:
    """Run the commands, unless somebody has done it already. Processes of pytest may share the cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    is_complete = directory / "complete"
    with (CACHE / f"{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_complete.exists():
            return
        for command in commands:
            done = subprocess.run(
                command,
                cwd=cwd,
                env={**os.environ, **environ},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=INSTALL_TIMEOUT_S,
                check=False,
            )
            if done.returncode != 0 and (reason := UNREACHABLE.search(done.stdout)):
                pytest.skip(f"{directory.name}: the registry cannot be reached ({reason[0]})")
            assert done.returncode == 0, done.stdout
        is_complete.touch()
