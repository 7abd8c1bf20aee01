"""The recipe's `notify`: addresses of Apprise. Each holds a token or a password: no message shows one, and no run
directory keeps one.

>>> of_text("tgram://123:token/chat json://host/path")
['tgram://123:token/chat', 'json://host/path']
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

FIELD = "notify"
IN_RUN_DIR: list[str] = []  # what recipe.yaml of a run directory holds in their place
NOT_KEPT = ", not kept"  # ends their origin there
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://\S", re.IGNORECASE)


def of_text(given: Any) -> Any:
    """The addresses in a text, separated by spaces, line ends, or commas before the next scheme; others as they are.

    A comma may also be part of an address: mailto://me:pw@host?to=one@host,two@host.
    """
    if not isinstance(given, str):
        return given
    return [one for one in re.split(r"\s+|,(?=[a-z][a-z0-9+.-]*://)", given, flags=re.IGNORECASE) if one]


def _are_addresses(addresses: list[str]) -> list[str]:
    """Each once. Raises ValueError, which shows none of them."""
    for number, address in enumerate(addresses, 1):
        if not _SCHEME.match(address) or re.search(r"\s", address):
            raise ValueError(
                f"address {number} of {len(addresses)} is not SERVICE://…, such as json://HOST/PATH (not shown: an "
                "address is a secret)"
            )
    return list(dict.fromkeys(addresses))


Addresses = Annotated[list[str], BeforeValidator(of_text), AfterValidator(_are_addresses)]


def is_secret(key: str) -> bool:
    """Whether no message may show the value of this dotted key, which may also be of one of its items."""
    return key == FIELD or key.startswith(f"{FIELD}.")


def service(address: str) -> str:
    """The only part of an address that may be shown.

    >>> service("slack://token/token/token")
    'slack'
    """
    return address.partition("://")[0].lower()
