"""Azure, Bedrock and Vertex through the official clients: paths, versions, headers, and what is said when one is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from fairlead.errors import InputError, MissingResource
from fairlead.exchange import system, user
from fairlead.models import Sampling, open_model
from fairlead.models.clouds import plain_name
from fairlead.models.remote import Limits
from support.bodies import error_body
from support.cloud_doors import Door
from support.fakes import Echo, Fault

QUICK = Limits(backoff=0.01, backoff_cap=0.05, attempts=2)
PROMPT = [system("be kind"), user("good day")]
VARIABLES = (
    "AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN", "AZURE_OPENAI_ENDPOINT", "OPENAI_API_VERSION", "AWS_REGION",
    "AWS_DEFAULT_REGION", "AWS_BEARER_TOKEN_BEDROCK", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE",
    "ANTHROPIC_BEDROCK_BASE_URL", "CLOUD_ML_REGION", "ANTHROPIC_VERTEX_PROJECT_ID", "CLOUDSDK_AUTH_ACCESS_TOKEN",
    "ANTHROPIC_VERTEX_BASE_URL", "GOOGLE_APPLICATION_CREDENTIALS",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_clouds(monkeypatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_azure_by_api_version(monkeypatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "azure-key")
    monkeypatch.setenv("OPENAI_API_VERSION", "2026-06-01")
    with Door(Echo()) as server:
        model = open_model(f"azure/my-deployment@{server.url}", limits=QUICK)
        ((reply,),) = model.generate([PROMPT], Sampling(max_tokens=9, temperature=0.5))
    (path, headers, body), *more = server.came
    assert reply.text == "good day #0" and not more
    assert path == "/openai/deployments/my-deployment/chat/completions?api-version=2026-06-01"
    assert headers["api-key"] == "azure-key" and "authorization" not in headers
    assert (body["max_completion_tokens"], body["temperature"], body["messages"][0]["role"]) == (9, 0.5, "system")
    assert model.lineage == f"api:127.0.0.1:{server.server_address[1]}/my-deployment"


def test_azure_by_token_and_by_the_newer_path(monkeypatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "azure-key")
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", "ad-token")
    monkeypatch.setenv("OPENAI_API_VERSION", "2026-06-01")
    with Door(Echo()) as server:
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", server.url)
        open_model("azure/d", limits=QUICK).generate([PROMPT])
        assert server.came[0][1]["authorization"] == "Bearer ad-token" and "api-key" not in server.came[0][1]
        monkeypatch.delenv("AZURE_OPENAI_AD_TOKEN")
        monkeypatch.delenv("OPENAI_API_VERSION")
        with pytest.raises(InputError, match="OPENAI_API_VERSION, or end the URL with /openai/v1"):
            open_model("azure/d")
        open_model(f"azure/d@{server.url}/openai/v1", limits=QUICK).generate([PROMPT])
    path, headers, body = server.came[1]
    assert (path, headers["authorization"], body["model"]) == ("/openai/v1/chat/completions", "Bearer azure-key", "d")


def test_azures_filter_is_a_filter(monkeypatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "azure-key")
    body = error_body("azure", "The response was filtered", "invalid_request_error", code="content_filter")
    with Door(Echo(), lambda i, sent: Fault(400, body)) as server:
        ((reply,),) = open_model(f"azure/d@{server.url}/openai/v1", limits=QUICK).generate([PROMPT])
    assert reply.finish == "filter"


def test_bedrock_by_bearer_token(monkeypatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", "bedrock-token")
    with Door(Echo()) as server:
        model = open_model(f"bedrock/eu.anthropic.claude-opus-5-v1:0@{server.url}", limits=QUICK)
        ((reply,),) = model.generate([PROMPT], Sampling(max_tokens=9, stop=("x",)))
    ((path, headers, body),) = server.came
    assert reply.text == "good day #0" and path == "/model/eu.anthropic.claude-opus-5-v1:0/invoke"
    assert headers["authorization"] == "Bearer bedrock-token"
    assert (body["system"], body["max_tokens"], body["stop_sequences"]) == ("be kind", 9, ["x"])
    assert model.lineage == "api:anthropic/claude-opus-5", "the same model as at Anthropic's own door"


class FakeSigner:
    """What the SDK needs of boto3, without boto3: a signature that is no secret."""

    def __init__(self, credentials: object, service: str, region: str) -> None:
        self.where = f"{service}/{region}"

    def add_auth(self, request: object) -> None:
        request.headers["Authorization"] = f"AWS4-HMAC-SHA256 {self.where}"


class FakeRequest:
    def __init__(self, method: str, url: str, headers: dict, data: bytes) -> None:
        self.headers = dict(headers)

    def prepare(self) -> FakeRequest:
        return self


def _boto(monkeypatch, credentials: object) -> None:
    class Session:
        region_name = "us-east-1"

        def __init__(self, **given: object) -> None: ...
        def get_credentials(self) -> object:
            return credentials

    modules = {
        "boto3": {"Session": Session}, "botocore": {}, "botocore.auth": {"SigV4Auth": FakeSigner},
        "botocore.awsrequest": {"AWSRequest": FakeRequest},
    }  # fmt: skip
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(content, __spec__=types.SimpleNamespace(name=name), __path__=[])
        monkeypatch.setitem(sys.modules, name, module)
    from anthropic.lib.aws._auth import _get_session

    _get_session.cache_clear()


def test_bedrock_by_aws_credentials(monkeypatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    _boto(monkeypatch, object())
    with Door(Echo()) as server:
        ((reply,),) = open_model(f"bedrock/anthropic.claude-x@{server.url}", limits=QUICK).generate([PROMPT])
    assert reply.text == "good day #0"
    assert server.came[0][1]["authorization"] == "AWS4-HMAC-SHA256 bedrock/us-east-1"


def test_bedrock_without_credentials_says_how_to_log_in(monkeypatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    _boto(monkeypatch, None)
    with Door(Echo()) as server, pytest.raises(MissingResource, match=r"no credentials .*AWS_BEARER_TOKEN_BEDROCK"):
        open_model(f"bedrock/anthropic.claude-x@{server.url}", limits=QUICK).generate([PROMPT])
    assert server.count == 0


def test_vertex_by_token(monkeypatch) -> None:
    monkeypatch.setenv("CLOUD_ML_REGION", "europe-west1")
    monkeypatch.setenv("ANTHROPIC_VERTEX_PROJECT_ID", "my-project")
    monkeypatch.setenv("CLOUDSDK_AUTH_ACCESS_TOKEN", "google-token")
    with Door(Echo()) as server:
        model = open_model(f"vertex/claude-opus-5@20260101@{server.url}/v1", limits=QUICK)
        ((reply,),) = model.generate([PROMPT], Sampling(max_tokens=9))
    ((path, headers, body),) = server.came
    assert reply.text == "good day #0" and headers["authorization"] == "Bearer google-token"
    where = "/v1/projects/my-project/locations/europe-west1/publishers/anthropic/models"
    assert path == f"{where}/claude-opus-5@20260101:rawPredict" and body["max_tokens"] == 9
    assert model.lineage == "api:anthropic/claude-opus-5"


@pytest.mark.parametrize(
    ("spec", "set_", "error", "words"),
    [
        ("azure/d", {}, InputError, "AZURE_OPENAI_ENDPOINT"),
        ("azure/d@https://x.openai.azure.com", {}, MissingResource, "AZURE_OPENAI_API_KEY, or AZURE_OPENAI_AD_TOKEN"),
        ("azure/d@http://x.example.com/openai/v1", {"AZURE_OPENAI_API_KEY": "k"}, InputError, "plain http"),
        ("bedrock/m", {}, InputError, "AWS_REGION"),
        ("bedrock/", {}, InputError, "which model"),
        ("vertex/m", {}, InputError, "CLOUD_ML_REGION"),
        ("vertex/m", {"CLOUD_ML_REGION": "eu"}, InputError, "ANTHROPIC_VERTEX_PROJECT_ID"),
    ],
)
def test_what_is_missing_is_named(spec: str, set_: dict[str, str], error: type, words: str, monkeypatch) -> None:
    for name, value in set_.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(error, match=words):
        open_model(spec)


BLOCKED = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("boto3", "botocore", "google"):
            raise ModuleNotFoundError("blocked: " + name, name=name)
sys.meta_path.insert(0, Block())
from fairlead.models import open_model
for spec in ("bedrock/m", "vertex/m"):
    try:
        open_model(spec)
    except Exception as error:
        print(type(error).__name__, error.exit_code, error)
"""


def test_without_the_extra_it_is_named() -> None:
    env = {**os.environ, "AWS_REGION": "us-east-1", "CLOUD_ML_REGION": "eu", "ANTHROPIC_VERTEX_PROJECT_ID": "p"}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", BLOCKED], env=env, capture_output=True, text=True, timeout=120)
    bedrock, vertex = done.stdout.splitlines()
    assert bedrock.startswith("MissingResource 4") and "boto3: pip install 'fairlead[bedrock]'" in bedrock
    assert vertex.startswith("MissingResource 4") and "google-auth: pip install 'fairlead[vertex]'" in vertex
    wanted = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert "\nbedrock = [" in wanted and "\nvertex = [" in wanted


def test_the_names_of_one_model_at_every_door() -> None:
    names = ["us.anthropic.claude-opus-4-20250514-v1:0", "anthropic.claude-opus-4-v1", "claude-opus-4@20250514"]
    assert {plain_name(n) for n in [*names, "claude-opus-4"]} == {"claude-opus-4"}
