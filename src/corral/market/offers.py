"""Like devices as one row: what the network offers now, and what it cannot offer although it is idle."""

from collections import Counter, defaultdict
from collections.abc import Collection
from datetime import datetime

from corral.market.placement import QuotedLine, Rentable, counts_by_host, priced
from corral.market.prices import Prices
from corral.wire.api import Offer, Offers, UnavailableDevices


def offers_of(devices: Collection[Rentable], prices: Prices, *, now: datetime) -> Offers:
    """
    What can be rented at `now`, cheapest first. A row is of one model, provider, rate, share of the host, cap and tier.

    Every device is either counted in an offer or, with the reason, among the unavailable.
    """
    groups: defaultdict[tuple[object, ...], list[QuotedLine]] = defaultdict(list)
    lines = priced(devices, prices)
    for line in lines:
        share = (line.cores, line.memory_bytes, line.gpu_memory_bytes, line.traffic_cap_bytes)
        key = (line.kind, line.model, line.provider_id, line.rate_uc_per_hour, line.development, share, line.tier)
        groups[key].append(line)
    offers = [_offer(group) for group in groups.values()]
    offers.sort(key=lambda offer: (offer.kind != "gpu", offer.rate_uc_per_hour, offer.model, offer.provider))
    offered = {line.device_id for line in lines}
    # A CPU slice always has a price: only a GPU's model can be unknown.
    missing = Counter(device.model for device in devices if device.device_id not in offered)
    unavailable = [
        UnavailableDevices(kind="gpu", model=model, devices=count, reason="the price file has no price for this model")
        for model, count in sorted(missing.items())
    ]
    return Offers(as_of=now, offers=offers, unavailable=unavailable)


def _offer(group: list[QuotedLine]) -> Offer:
    first, per_host = group[0], counts_by_host(group)
    return Offer(
        kind=first.kind,
        model=first.model,
        rate_uc_per_hour=first.rate_uc_per_hour,
        devices=len(group),
        hosts=len(per_host),
        per_host_max=max(per_host.values()),
        cores=first.cores,
        memory_bytes=first.memory_bytes,
        gpu_memory_bytes=first.gpu_memory_bytes,
        provider=first.provider_name,
        development=first.development,
        traffic_cap_bytes=first.traffic_cap_bytes,
        tier=first.tier,
    )
