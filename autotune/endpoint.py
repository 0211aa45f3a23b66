"""`autotune doctor --endpoint URL`: what a running server offers, and what follows for a measurement."""

from dataclasses import asdict

from autotune.console import emit_json, next_step, out, table

MARKS = {True: "[green]yes[/]", False: "[yellow]no[/]", None: "?"}


def show(base_url: str, model: str | None, api_key_env: str | None, *, json: bool) -> None:
    """Raises UserError for an address or key that cannot be used, EngineStartError where nobody answers."""
    import httpx
    from pydantic import ValidationError
    from rich.markup import escape

    from harness.engines import probing
    from harness.engines.attached import checked_key
    from harness.engines.base import Endpoint, root_of
    from harness.errors import EngineStartError
    from scenarios.errors import UserError
    from scenarios.spec import EngineSpec

    try:
        spec = EngineSpec(name="attached", base_url=base_url, api_key_env=api_key_env)
    except ValidationError as wrong:
        first = wrong.errors()[0]
        option = {"base_url": "--endpoint", "api_key_env": "--api-key-env"}[str(first["loc"][0])]
        raise UserError(f"{option}: {first['msg'].removeprefix('Value error, ')}") from wrong
    checked_key(spec)
    endpoint = Endpoint(root_of(base_url), base_url.rstrip("/"), model or "", spec.api_key_env)
    try:
        offers = probing.ask(endpoint)
    except httpx.HTTPError as err:
        raise EngineStartError(
            f"{base_url} does not answer ({err}); is the server running, and the address right?"
        ) from err
    name = offers.endpoint.served_model
    if json:
        emit_json(
            {
                "endpoint": base_url,
                "server": offers.server,
                "models": list(offers.models),
                "asked_as": name,
                "sent_beside": dict(offers.endpoint.request_extras),
                "capabilities": [asdict(capability) for capability in offers.capabilities],
            }
        )
        return
    found = table(f"{base_url}: {offers.server or 'a server that does not say which'}", "what", "", "found")
    for c in offers.capabilities:
        found.add_row(c.name, MARKS[c.ok], escape(c.found))
    out.print(found)
    for line in offers.lacking:
        out.print(line, soft_wrap=True, markup=False)
    next_step(
        f"autotune scenarios show attached > theirs.yaml, with base_url: {base_url} and served_as: {escape(name)}"
    )
