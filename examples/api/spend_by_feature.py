"""What a team spent last month, by feature: the sums of the ledger, exact to the nano-dollar."""

import os
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import httpx


def main(team_name: str) -> None:
    this_month = datetime.now(UTC).date().replace(day=1)
    last_month = (this_month - timedelta(days=1)).replace(day=1)
    with httpx.Client(headers={"Authorization": f"Bearer {os.environ['TOLLGATE_TOKEN']}"}) as api:
        base = f"{os.environ['TOLLGATE_URL']}/api/v1"
        teams = answered(api, f"{base}/teams/", name=team_name)["results"]
        if not teams:
            sys.exit(f"no team is called {team_name!r}")
        question = {"team": teams[0]["id"], "group_by": "tag:feature", "start": last_month, "end": this_month}
        page = answered(api, f"{base}/usage/", **{name: str(value) for name, value in question.items()})
        rows = page["results"]
        while page["next"]:
            page = answered(api, page["next"])
            rows += page["results"]
    for row in sorted(rows, key=lambda row: -Decimal(row["cost_usd"])):
        print(f"{row['tag']:<24} {row['requests']:>10,} requests {Decimal(row['cost_usd']):>16,.6f} USD")


def answered(api: httpx.Client, url: str, **parameters: str) -> dict:
    answer = api.get(url, params=parameters or None)
    if answer.is_error:
        sys.exit(answer.json()["detail"])
    return answer.json()


if __name__ == "__main__":
    main(sys.argv[1])
