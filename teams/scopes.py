"""What a service account may be allowed to do through the API. No database, no Django."""

RESOURCES = ("teams", "service_accounts", "keys", "credentials", "kill_switches", "routing", "budgets", "alerts")

SCOPES: tuple[str, ...] = (
    *(f"{resource}:{verb}" for resource in RESOURCES for verb in ("read", "write")),
    "usage:read",
    "audit:read",
)

# What these concern belongs to no team, so an account of one team does not get them.
BEYOND_A_TEAM = frozenset({"credentials:read", "credentials:write", "routing:write", "audit:read"})
