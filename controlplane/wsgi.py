"""The control plane as a WSGI application. Refuses to start with weak settings."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")

application = get_wsgi_application()

from controlplane.checks import refuse_weak_settings  # noqa: E402  Needs the applications to be loaded.

refuse_weak_settings()
