"""Make a team ready to work: a project, a hard monthly budget, a virtual key. Prints the key's secret, which is shown once."""

import os
import sys

import httpx


def main(name: str) -> None:
    slug = name.lower().replace(" ", "-")
    with httpx.Client(
        base_url=f"{os.environ['TOLLGATE_URL']}/api/v1",
        headers={"Authorization": f"Bearer {os.environ['TOLLGATE_TOKEN']}", "X-Audit-Reason": "onboarding"},
    ) as api:
        team = made(api, "teams", name=name, slug=slug)
        project = made(api, "projects", team=team["id"], name="Chatbot", slug="chatbot", required_tag_keys=["feature"])
        made(api, "budgets", team=team["id"], name="Monthly cap", window="month", amount="100")
        key = made(api, "virtual-keys", project=project["id"], name=f"{slug} chatbot", aliases=["*"])
    print(key["secret"])


def made(api: httpx.Client, resource: str, **fields: object) -> dict[str, str]:
    answer = api.post(f"/{resource}/", json=fields)
    if answer.is_error:
        sys.exit(f"{resource}: {answer.json()['detail']}")
    return answer.json()


if __name__ == "__main__":
    main(sys.argv[1])
