"""Settings of the control plane. The environment is read here, and for the data path in `proxy/config.py`; nowhere else.

Values are typed here. What is weak or missing is refused by the checks in `controlplane/checks.py`.
"""

from pathlib import Path

import environ
from csp.constants import NONE, SELF, UNSAFE_INLINE
from django.core.management.utils import get_random_secret_key
from django.templatetags.static import static
from django.urls import reverse_lazy

BASE_DIR = Path(__file__).resolve().parent.parent

env = environ.Env()

# What this installation is

DEMO = env.bool("TOLLGATE_DEMO", default=False)
DEBUG = env.bool("TOLLGATE_DEBUG", default=False)
LOOPBACK_HOSTS = ["127.0.0.1", "localhost", "[::1]"]
ALLOWED_HOSTS = env.list("TOLLGATE_ALLOWED_HOSTS", default=LOOPBACK_HOSTS if DEMO else [])
# Proxies in front of the control plane whose X-Forwarded-For and X-Forwarded-Proto are to be believed.
TRUSTED_PROXIES = env.int("TOLLGATE_TRUSTED_PROXIES", default=0)
# Where people open the admin, for the links in alerts: https://tollgate.example.com/admin. Without it there are none.
TOLLGATE_ADMIN_URL = env.str("TOLLGATE_ADMIN_URL", default="").rstrip("/")
# After so long the provider of a request whose worker died has answered, mostly.
TOLLGATE_SUSPENSE_ALERT_S = env.int("TOLLGATE_SUSPENSE_ALERT_S", default=3600)
DATA_DIR = Path(env.str("TOLLGATE_DATA_DIR", default=str(BASE_DIR / "var")))

# Secrets. Without a secret key each process makes up its own, so nothing is signed with a known one; the checks refuse it.

SECRET_KEY_IS_SET = bool(env.str("TOLLGATE_SECRET_KEY", default=""))
SECRET_KEY = env.str("TOLLGATE_SECRET_KEY", default="") or get_random_secret_key()
SECRET_KEY_FALLBACKS = env.list("TOLLGATE_SECRET_KEY_FALLBACKS", default=[])
# Comma-separated base64 of 32 bytes; the first seals, all of them open (keys/vault.py).
TOLLGATE_VAULT_KEY = env.str("TOLLGATE_VAULT_KEY", default="")

# PostgreSQL, Redis

DATABASES = {"default": env.db_url("DATABASE_URL", default="postgres:///tollgate")}
DATABASES["default"]["CONN_MAX_AGE"] = 0
DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
DATABASES["default"].setdefault("OPTIONS", {}).update(
    pool={"min_size": 0, "max_size": env.int("TOLLGATE_DATABASE_POOL", default=8), "timeout": 5},
)
REDIS_URL = env.str("REDIS_URL", default="redis://127.0.0.1:6379/0")

# Applications, requests

INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "unfold.contrib.forms",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "django.contrib.postgres",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "csp",
    "audit",
    "teams",
    "keys",
    "routing",
    "budgets",
    "controlplane",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "controlplane.csp.ContentSecurityPolicy",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "controlplane.urls"
WSGI_APPLICATION = "controlplane.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATA_UPLOAD_MAX_MEMORY_SIZE = 2 * 1024 * 1024
FORMS_URLFIELD_ASSUME_HTTPS = True

# People

AUTH_USER_MODEL = "teams.User"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
LOGIN_URL = reverse_lazy("admin:login")
LOGIN_REDIRECT_URL = reverse_lazy("admin:index")

# Transport. The demo speaks plain http, on loopback only (the checks see to that).

IS_TLS = not DEMO
SESSION_COOKIE_NAME = "__Host-tollgate-session" if IS_TLS else "tollgate-session"
SESSION_COOKIE_SECURE = IS_TLS
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_AGE = 12 * 60 * 60
CSRF_COOKIE_NAME = "__Host-tollgate-csrf" if IS_TLS else "tollgate-csrf"
CSRF_COOKIE_SECURE = IS_TLS
CSRF_COOKIE_HTTPONLY = True
SECURE_SSL_REDIRECT = IS_TLS
SECURE_REDIRECT_EXEMPT = [r"^healthz$"]
SECURE_HSTS_SECONDS = 365 * 24 * 60 * 60 if IS_TLS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = IS_TLS
SECURE_HSTS_PRELOAD = IS_TLS
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if TRUSTED_PROXIES else None
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"

CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "script-src": [SELF],
        # The admin theme sets styles from its scripts.
        "style-src": [SELF, UNSAFE_INLINE],
        "img-src": [SELF, "data:"],
        "object-src": [NONE],
        "base-uri": [NONE],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
    },
}

# Language, time, static files

LANGUAGE_CODE = "en-us"
USE_I18N = False
USE_TZ = True
TIME_ZONE = "UTC"
FORMAT_MODULE_PATH = ["controlplane.formats"]
STATIC_URL = "/static/"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
# Files are found where the packages keep them: no collectstatic step on the way to a first start.
WHITENOISE_USE_FINDERS = True

# Celery. Its messages only say "do it now": whatever must not be lost waits in PostgreSQL, the usage stream or a journal. So they are
# acknowledged before they are done, and beat says it again: what is not acknowledged ends a worker whose broker dies (test_celery.py).

CELERY_BROKER_URL = REDIS_URL.replace("unix://", "redis+socket://", 1)
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": 60, "global_keyprefix": "celery:"}
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_SERIALIZER = "json"
CELERY_RESULT_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_TIME_LIMIT = 55
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_TIMEZONE = "UTC"
CELERY_BEAT_SCHEDULE = {
    "ingest_usage": {"task": "budgets.ingest_usage", "schedule": 1.0, "options": {"expires": 5}},
    "watch_epoch": {"task": "controlplane.watch_epoch", "schedule": 1.0, "options": {"expires": 5}},
    "resolve_suspense": {"task": "budgets.resolve_suspense", "schedule": 5.0, "options": {"expires": 5}},
    "verify": {"task": "budgets.verify", "schedule": 60.0, "options": {"expires": 50}},
    "watch": {"task": "budgets.watch", "schedule": 60.0, "options": {"expires": 50}},
    "watch_touched": {"task": "budgets.watch_touched", "schedule": 2.0, "options": {"expires": 5}},
    "deliver_alerts": {"task": "budgets.deliver_alerts", "schedule": 2.0, "options": {"expires": 5}},
    "reap_lost_workers": {"task": "budgets.reap_lost_workers", "schedule": 2.0, "options": {"expires": 5}},
    "record_unrecorded_kills": {
        "task": "controlplane.record_unrecorded_kills",
        "schedule": 5.0,
        "options": {"expires": 5},
    },
    "follow_contracts": {"task": "budgets.follow_contracts", "schedule": 60.0, "options": {"expires": 50}},
    "apply_rerates": {"task": "budgets.apply_rerates", "schedule": 10.0, "options": {"expires": 10}},
    "fetch_exchange_rates": {"task": "budgets.fetch_exchange_rates", "schedule": 5.0, "options": {"expires": 5}},
    "propose_prices": {"task": "budgets.propose_prices", "schedule": 24 * 60 * 60.0, "options": {"expires": 3600}},
    "sweep_workers": {"task": "controlplane.sweep_workers", "schedule": 10.0, "options": {"expires": 10}},
    "ensure_partitions": {"task": "audit.ensure_partitions", "schedule": 60 * 60.0, "options": {"expires": 3600}},
}

# REST API

# --- begin REST_FRAMEWORK ---
REST_FRAMEWORK: dict[str, object] = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "controlplane.api_access.BearerToken",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["controlplane.api_access.HasScope"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_METADATA_CLASS": None,
    "EXCEPTION_HANDLER": "controlplane.problems.problem_response",
    "URL_FORMAT_OVERRIDE": None,
    "COMPACT_JSON": True,
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SPECTACULAR_SETTINGS: dict[str, object] = {
    "TITLE": "Tollgate",
    "DESCRIPTION": "The management API of Tollgate, a self-hosted AI gateway. See docs/api.md.",
    "VERSION": "1",
    "LICENSE": {"name": "Apache-2.0"},
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SERVE_AUTHENTICATION": [],
    # Nothing comes from elsewhere: the page works without the internet, and under the content security policy.
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "SCHEMA_PATH_PREFIX": "/api/v1/",
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_NAME_OVERRIDES": {
        "KillSwitchScopeEnum": "keys.models.KillSwitch.Scope",
        "SubjectEnum": "budgets.models.Scope",
        "UsageRecordKindEnum": "audit.models.UsageRecord.Kind",
        "UsageRecordStateEnum": "audit.models.UsageRecord.State",
        "ApiScopeEnum": "teams.scopes.SCOPES",
        "AlertKindEnum": "budgets.alert_models.Alert.Kind",
        "AlertStatusEnum": "budgets.alert_models.Alert.Status",
        "ChannelKindEnum": "budgets.alert_models.Channel.Kind",
        "SeverityEnum": "budgets.alert_models.Severity",
        "VirtualKeyStatusEnum": ["active", "paused", "expired", "revoked"],
    },
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "controlplane.problems.document_problems",
    ],
}
# --- end REST_FRAMEWORK ---

# The admin's look and order

UNFOLD = {
    "SITE_TITLE": "Tollgate",
    "SITE_HEADER": "Tollgate",
    "SITE_SUBHEADER": "AI gateway",
    "SITE_SYMBOL": "toll",
    "SHOW_HISTORY": True,
    "SHOW_VIEW_ON_SITE": False,
    "SHOW_BACK_BUTTON": True,
    "DASHBOARD_CALLBACK": "controlplane.views.dashboard",
    "STYLES": [lambda request: static("tollgate/admin.css")],
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("tollgate/favicon.svg")},
    ],
    "SIDEBAR": {"show_search": True, "show_all_applications": False, "navigation": "controlplane.navigation.sidebar"},
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": env.str("TOLLGATE_LOG_LEVEL", default="INFO")},
    # Four tasks a second that say "sent", "received" and "succeeded" would bury what matters. Clients of HTTP tell addresses,
    # and those of channels are secrets.
    "loggers": {
        name: {"level": "WARNING"}
        for name in ("celery.beat", "celery.worker.strategy", "celery.app.trace", "httpx", "httpcore", "urllib3")
    },
}
