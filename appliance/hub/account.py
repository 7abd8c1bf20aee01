"""Whose token it is and what it may do, as the Hub says it: https://huggingface.co/docs/hub/api, /api/whoami-v2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from appliance.errors import HubError
from appliance.hub import answers
from appliance.hub import errors as hub_errors
from appliance.hub.errors import Kind
from appliance.recipe import hub_names


@dataclass(frozen=True)
class Account:
    """Whose token it is and what it may do. `scopes`, if fine-grained: (user | org | model | …, name) -> rights."""

    name: str
    role: str  # read | write | fineGrained, or what else the Hub says
    organisations: Mapping[str, str]  # name -> role in it, empty if the Hub does not say
    scopes: Mapping[tuple[str, str], tuple[str, ...]]
    reads_gated: bool


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True)


class _Organisation(_Answer):
    name: str
    roleInOrg: str | None = None


class _Entity(_Answer):
    type: str = ""
    name: str = ""


class _Scope(_Answer):
    entity: _Entity
    permissions: list[str] = []


class _FineGrained(_Answer):
    scoped: list[_Scope] | None = None
    canReadGatedRepos: bool = False


class _AccessToken(_Answer):
    role: str = "unknown"
    fineGrained: _FineGrained | None = None


class _Auth(_Answer):
    accessToken: _AccessToken | None = None


class _Whoami(_Answer):
    """What is read of the answer; whatever else it holds is ignored. Only `name` is always there."""

    name: str
    orgs: list[_Organisation] | None = None
    auth: _Auth | None = None

    @field_validator("name")
    @classmethod
    def _becomes_part_of_a_repository(cls, name: str) -> str:
        if "/" in name or len(name) > 200:
            raise ValueError(
                "expected a user's name" if "/" in name else f"a name of {len(name)} characters is too long"
            )
        hub_names.refuse_name(name)
        return name


def whoami(token: str) -> Account | None:
    """The token's account; None if the Hub does not accept the token. Raises HubError: the answer is something else."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return parsed(HfApi(token=token).whoami())
    except HfHubHTTPError as error:
        kind = hub_errors.failure_of(error).kind
        if kind is Kind.TOKEN:
            return None
        if kind is Kind.NO_REPOSITORY:
            status = error.response.status_code
            raise HubError(f"the Hub's address does not know /api/whoami-v2 ({status})", hint=answers.HINT) from error
        raise


def parsed(answer: object) -> Account:
    """The account that the Hub's answer describes. Raises HubError: it describes none."""
    try:
        found = _Whoami.model_validate(answer)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the answer"
        raise HubError(
            f"the Hub does not say whose token this is: {where}: {first['msg'].removeprefix('Value error, ')[:200]}",
            hint=answers.HINT,
        ) from error
    access = (found.auth and found.auth.accessToken) or _AccessToken()
    fine = access.fineGrained or _FineGrained()
    return Account(
        found.name,
        access.role,
        {org.name: org.roleInOrg or "" for org in found.orgs or []},
        {(scope.entity.type, scope.entity.name): tuple(scope.permissions) for scope in fine.scoped or []},
        fine.canReadGatedRepos,
    )
