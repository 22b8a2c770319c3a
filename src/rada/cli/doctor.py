"""`rada doctor`: what is installed here, what is missing, and where things are."""

from __future__ import annotations

from typing import Any

from rada.cli.options import JsonFlag, print_json
from rada.core.terminal import echo


def doctor(json: JsonFlag = False) -> None:
    """Show versions, devices, threads, the cache, and which extras are missing, with the command for each."""
    facts = _facts()
    if json:
        print_json(facts)
        return
    versions = facts["environment"]["versions"]
    echo(f"rada {versions.pop('rada')}, Python {facts['environment']['python']}")
    for key in ("platform", "processor"):
        _line(key, facts["environment"][key])
    _line("devices", ", ".join(facts["environment"]["devices"]))
    _line("threads", f"{facts['environment']['threads']} of {facts['environment']['cpus']} cores")
    _line("cache", f"{facts['cache']['folder']} ({facts['cache']['bytes'] / 1e6:.1f} MB)")
    _line("model hub", "offline (HF_HUB_OFFLINE)" if facts["hub_offline"] else "online")
    echo("packages")
    for name, version in versions.items():
        _line(name, version or "not installed")
    echo("extras")
    for extra, entry in facts["extras"].items():
        missing = entry["missing"]
        _line(
            extra, f"without {', '.join(missing)}: {entry['command']}" if missing else "installed"
        )


def _line(name: str, value: object) -> None:
    echo(f"  {name:<13} {value}")


def _facts() -> dict[str, Any]:
    """Return everything as plain JSON."""
    import os

    from rada.core.caches import cache_root, cache_size
    from rada.core.extras import missing_packages
    from rada.evaluation.provenance import environment

    return {
        "environment": environment(),
        "cache": {"folder": str(cache_root()), "bytes": cache_size()},
        "hub_offline": os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"),
        "extras": {
            extra: {
                "missing": list(missing),
                "command": f"pip install 'rada-vlm[{extra}]'" if missing else None,
            }
            for extra, missing in missing_packages().items()
        },
    }
