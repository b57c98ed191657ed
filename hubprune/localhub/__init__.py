"""An embedded Hub: try a publishing pipeline without a network, with the clients of the public Hub.

Serves models, data sets and Spaces from a folder to `huggingface_hub`, `transformers`, `datasets` and `hf`::

    from hubprune.localhub import EmbeddedHub

    with EmbeddedHub("hub", users={"me": "hf_token"}, seed=["folder"]) as hub:
        print(hub.url)

Needs starlette, uvicorn, lz4, jinja2, markdown-it-py and nh3, which are imported with the first use of a name below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hubprune.localhub.seed import seed_folder
    from hubprune.localhub.server import EmbeddedHub, client_env, parse_users, serve
    from hubprune.localhub.store import Store

__all__ = ["EmbeddedHub", "Store", "client_env", "parse_users", "seed_folder", "serve"]

_HOMES = {
    "EmbeddedHub": "hubprune.localhub.server",
    "Store": "hubprune.localhub.store",
    "client_env": "hubprune.localhub.server",
    "parse_users": "hubprune.localhub.server",
    "seed_folder": "hubprune.localhub.seed",
    "serve": "hubprune.localhub.server",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
