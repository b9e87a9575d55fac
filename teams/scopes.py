"""What a service account may be allowed to do through the API. No database, no Django."""

RESOURCES = ("teams", "keys", "credentials", "kill_switches", "routing", "budgets", "usage", "audit")

SCOPES: tuple[str, ...] = tuple(f"{resource}:{verb}" for resource in RESOURCES for verb in ("read", "write"))
