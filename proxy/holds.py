"""How much is held for a call: the worst that its provider may bill. Money in nano-USD. No I/O."""

from budgets.pricing import Price, Rates, ceiling, hold_nanos
from proxy.dialects.dialect import Call
from proxy.jobs import price_of, rates_of_all
from proxy.prepare import Prepared
from proxy.snapshot import Deployment


def input_tokens_max(call: Call, deployment: Deployment) -> int:
    """What the provider may bill as input at most. A chat fits into a context, and into one more for each run of the provider's
    own tools, whose findings it reads with all that was there before; other calls hold many inputs."""
    if call.capability != "chat" and not call.is_session:
        return call.input_tokens_max
    context_tokens = max(deployment.context_window, call.context_tokens, 1)
    return min(call.input_tokens_max, context_tokens * (1 + call.tool_calls_max))


def output_tokens_max(call: Call, deployment: Deployment) -> int:
    """What the provider may bill as output at most."""
    most = deployment.max_output_tokens if call.output_tokens_max is None else call.output_tokens_max
    return most * call.choices


def money(
    prepared: Prepared, price: Price, input_tokens: int, output_tokens: int, tranche_tokens: int
) -> tuple[int, int]:
    """(the whole worst case, with `tranche_tokens` of output only). `input_tokens` and `output_tokens` are the most there may be."""
    call = prepared.described.call
    if call.is_free:
        return 0, 0
    if call.batch_requests:
        rates = _ceiling(price_of(call, price), prepared, call.input_tokens_max)
        full = _hold(rates_of_all(rates, call.batch_requests), call, call.input_tokens_max, output_tokens)
        return full, full
    rates = _ceiling(price, prepared, input_tokens)
    full = _hold(rates, call, input_tokens, output_tokens)
    return full, full if tranche_tokens == output_tokens else _hold(rates, call, input_tokens, tranche_tokens)


def tokens(call: Call, input_tokens: int, output_tokens: int, tranche_tokens: int) -> tuple[int, int]:
    """As `money`, in tokens."""
    if call.is_free:
        return 0, 0
    # The requests of a batch have a context each.
    heard = call.input_tokens_max if call.batch_requests else input_tokens
    return heard + output_tokens, heard + tranche_tokens


def more_output(prepared: Prepared, price: Price, input_tokens: int, output_tokens: int) -> int:
    """What `output_tokens` more cost at most, where there are so many of input."""
    return hold_nanos(_ceiling(price, prepared, input_tokens), 0, output_tokens)


def _ceiling(price: Price, prepared: Prepared, input_tokens: int) -> Rates:
    """The dearest rates that this attempt may be billed at."""
    return ceiling(price, input_tokens, service_tiers=prepared.service_tiers, may_be_in_geo=prepared.may_be_in_geo)


def _hold(rates: Rates, call: Call, input_tokens: int, output_tokens: int) -> int:
    return hold_nanos(
        rates,
        input_tokens,
        output_tokens,
        units_max=call.units_max,
        tool_calls_max=call.tool_calls_max,
        has_audio=call.has_audio,
        has_images=call.has_images,
    )
