"""The one message that travels up: something was changed and recorded. Sent inside the transaction of the change.

Receivers get `entry` (the `AuditEntry`) and `obj` (the model instance it is about, or None).
"""

from django.dispatch import Signal

recorded = Signal()
