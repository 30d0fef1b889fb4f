"""The same models at a cloud's door: `azure/DEPLOYMENT[@URL]`, `bedrock/MODEL[@URL]`, `vertex/MODEL[@URL]`.

Each through the official SDK's own client, with the SDK's own variables:

azure     AZURE_OPENAI_ENDPOINT (or the URL), AZURE_OPENAI_API_KEY or AZURE_OPENAI_AD_TOKEN (the token goes first), and
          OPENAI_API_VERSION unless the URL ends with /openai/v1
bedrock   AWS_REGION, and AWS_BEARER_TOKEN_BEDROCK or what boto3 finds (`pip install 'fairlead[bedrock]'`)
vertex    CLOUD_ML_REGION, ANTHROPIC_VERTEX_PROJECT_ID, and CLOUDSDK_AUTH_ACCESS_TOKEN or what google-auth finds
          (`pip install 'fairlead[vertex]'`)
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from fairlead.errors import InputError, MissingResource
from fairlead.models.access import Who, remote_lineage
from fairlead.models.anthropic import OFFICIAL, Messages
from fairlead.models.keys import key_from, travels_safely
from fairlead.models.openai import ChatCompletions
from fairlead.models.prices import without_date
from fairlead.models.remote import RemoteModel
from fairlead.models.sdk_anthropic import AnthropicConnection
from fairlead.models.sdk_openai import OpenAIConnection, connect
from fairlead.models.terms import Terms


def open_azure(model: str, url: str | None, *, name: str, terms: Terms) -> RemoteModel:
    """A deployment of an OpenAI model on Azure."""
    base = (url or os.environ.get("AZURE_OPENAI_ENDPOINT") or "").rstrip("/")
    if not base:
        raise InputError(
            f"{name}: where is the resource? Write azure/{model}@https://NAME.openai.azure.com, "
            "or set AZURE_OPENAI_ENDPOINT"
        )
    token = key_from("AZURE_OPENAI_AD_TOKEN", url=base, optional=True, name=name)
    key = token or key_from("AZURE_OPENAI_API_KEY", url=base, optional=True, name=name)
    if key is None:
        raise MissingResource(f"{name}: no key. Set AZURE_OPENAI_API_KEY, or AZURE_OPENAI_AD_TOKEN.")
    who = Who(name, model, base, "AZURE_OPENAI_AD_TOKEN" if token else "AZURE_OPENAI_API_KEY")
    version = ""
    if base.endswith("/openai/v1"):
        connection = connect(who, key)
    else:
        version = os.environ.get("OPENAI_API_VERSION", "")
        if not version:
            raise InputError(f"{name}: which API version? Set OPENAI_API_VERSION, or end the URL with /openai/v1")

        def make() -> Any:
            import openai

            given, ad = (None, key.reveal()) if token else (key.reveal(), None)
            return openai.AsyncAzureOpenAI(
                azure_endpoint=base, api_version=version, api_key=given, azure_ad_token=ad, max_retries=0
            )

        connection = OpenAIConnection(who, key, make)
    endpoint = ChatCompletions(
        connection, vllm=False, official=True, records=terms.records, batch=False, version=version
    )
    lineage = remote_lineage("azure", model, base, "")
    return terms.model(name, endpoint, lineage=lineage, url=base, price=terms.price(model, listed=False))


def open_bedrock(model: str, url: str | None, *, name: str, terms: Terms) -> RemoteModel:
    """A Claude model on Amazon Bedrock."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
    if not region:
        raise InputError(f"{name}: which region? Set AWS_REGION")
    base = url or os.environ.get("ANTHROPIC_BEDROCK_BASE_URL") or f"https://bedrock-runtime.{region}.amazonaws.com"
    key = key_from("AWS_BEARER_TOKEN_BEDROCK", url=base, optional=True, name=name)
    if key is None:
        _needs("boto3", "bedrock", name, "or set AWS_BEARER_TOKEN_BEDROCK")
        travels_safely("what AWS signs", base, name)

    def make() -> Any:
        import anthropic

        shown = key.reveal() if key is not None else None
        return anthropic.AsyncAnthropicBedrock(
            api_key=shown, aws_region=region, base_url=base, max_retries=0, open_telemetry=False
        )

    login = "Log in with the AWS tools (aws sso login), or set AWS_BEARER_TOKEN_BEDROCK."
    who = Who(name, model, base, "AWS_BEARER_TOKEN_BEDROCK" if key else "the AWS credentials")
    return _claude(AnthropicConnection(who, key, make, login=login), terms, region=region)


def open_vertex(model: str, url: str | None, *, name: str, terms: Terms) -> RemoteModel:
    """A Claude model on Google's Vertex AI."""
    region, project = os.environ.get("CLOUD_ML_REGION", ""), os.environ.get("ANTHROPIC_VERTEX_PROJECT_ID", "")
    if not region or not project:
        missing = "CLOUD_ML_REGION" if not region else "ANTHROPIC_VERTEX_PROJECT_ID"
        raise InputError(f"{name}: which {'region' if not region else 'project'}? Set {missing}")
    base = url or os.environ.get("ANTHROPIC_VERTEX_BASE_URL")
    shown_url = base or f"https://{region}-aiplatform.googleapis.com"
    token = key_from("CLOUDSDK_AUTH_ACCESS_TOKEN", url=shown_url, optional=True, name=name)
    if token is None:
        _needs("google.auth", "vertex", name, "or set CLOUDSDK_AUTH_ACCESS_TOKEN")
        travels_safely("Google's access token", shown_url, name)

    def make() -> Any:
        import anthropic

        access = token.reveal() if token is not None else None
        return anthropic.AsyncAnthropicVertex(
            region=region, project_id=project, access_token=access, base_url=base, max_retries=0, open_telemetry=False
        )

    login = "Log in (gcloud auth application-default login), or set CLOUDSDK_AUTH_ACCESS_TOKEN."
    who = Who(name, model, shown_url, "CLOUDSDK_AUTH_ACCESS_TOKEN" if token else "the Google credentials")
    return _claude(AnthropicConnection(who, token, make, login=login), terms, region=region, project=project)


def _claude(connection: AnthropicConnection, terms: Terms, **identity: str) -> RemoteModel:
    who = connection.who
    endpoint = Messages(connection, official=True, records=terms.records, batch=False, **identity)
    # who answers is the model, whichever door it stands behind: an auditor behind another door is no other model
    lineage = remote_lineage("anthropic", plain_name(who.model), OFFICIAL, OFFICIAL)
    return terms.model(who.name, endpoint, lineage=lineage, url=who.url, price=terms.price(who.model, listed=False))


def plain_name(model: str) -> str:
    """`us.anthropic.claude-opus-4-20250514-v1:0` and `claude-opus-4@20250514` as Anthropic itself names them."""
    name = re.sub(r"^(?:[a-z]+\.)?anthropic\.", "", model.rpartition("/")[2])
    name = re.sub(r"-v\d+(:\d+)?$", "", name).replace("@", "-")
    return without_date(name)


def _needs(module: str, extra: str, name: str, otherwise: str) -> None:
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        package = {"google.auth": "google-auth"}.get(module, module)
        raise MissingResource(f"{name}: this needs {package}: pip install 'fairlead[{extra}]', {otherwise}")


OPEN: Mapping[str, Callable[..., RemoteModel]] = {"azure": open_azure, "bedrock": open_bedrock, "vertex": open_vertex}
