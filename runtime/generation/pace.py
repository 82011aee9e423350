"""How many drafted tokens a pass should carry: as many as pay, by measured times and measured acceptance.

    seconds of a pass over n tokens : a line through the passes seen so far, later ones weigh more
    tokens that a pass yields       : 1 + r + r^2 + ... + r^k for k drafted ones that are each accepted with rate r

``k`` is chosen that yields most tokens per second; 0 where drafts do not pay. Rates drift back to where they began, so
that a kind of draft that did not pay is tried again some time.

Source: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", section 3.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

FORGET = 0.97
"""Weight of the times that were seen, per pass."""
FADE = 0.995
"""Weight of the drafts that were seen, per pass: what does not pay is tried again after some hundred tokens."""
MOST = 16.0
"""As many drafted tokens are remembered at most: a text that stops copying is found out within a few passes."""
MARGIN = 1.05
"""How much better than plain search a draft must promise to be."""
FIRST_RATE, FIRST_COUNT = 0.75, 2.0
"""Rate of acceptance that is believed before any draft, and how many drafts it counts as: fewer, the more were seen."""
NO_REASON = 0.4
"""The same rate for drafts that nothing speaks for."""
FIRST_SLOPE = 0.1
"""Cost of one more token in a pass over that of the first, before two lengths have been seen."""


@dataclass
class PassCost:
    """Seconds of a pass over ``n`` tokens: least squares, exponentially weighted.

    ``slope`` is what one more token costs over the first, from when passes of unlike lengths were last seen.
    """

    weight: float = 0.0
    tokens: float = 0.0
    squares: float = 0.0
    seconds: float = 0.0
    products: float = 0.0
    slope: float = FIRST_SLOPE

    def saw(self, tokens: int, seconds: float) -> None:
        """One pass over ``tokens`` took ``seconds``."""
        self.weight = FORGET * self.weight + 1
        self.tokens = FORGET * self.tokens + tokens
        self.squares = FORGET * self.squares + tokens * tokens
        self.seconds = FORGET * self.seconds + seconds
        self.products = FORGET * self.products + tokens * seconds
        spread = self.weight * self.squares - self.tokens**2
        if spread > 1e-2 * self.weight**2:
            per_token = (self.weight * self.products - self.tokens * self.seconds) / spread
            first = (self.seconds - per_token * (self.tokens - self.weight)) / self.weight
            self.slope = max(per_token, 0.0) / first if first > 0 else 1.0


@dataclass
class Acceptance:
    """How often drafts of one kind are accepted."""

    accepted: float = 0.0
    tried: float = 0.0
    first_rate: float = FIRST_RATE

    @property
    def rate(self) -> float:
        """Share of drafted tokens that are accepted where all before them were."""
        believed = FIRST_COUNT * (1 - self.tried / MOST)
        return (self.accepted + self.first_rate * believed) / (self.tried + believed)

    def fade(self) -> None:
        """Forget a little."""
        self.accepted *= FADE
        self.tried *= FADE

    def saw(self, accepted: int, drafted: int) -> None:
        """``accepted`` of ``drafted`` tokens were right; the first wrong one was tried, those behind it were not."""
        self.accepted += accepted
        self.tried += min(accepted + 1, drafted)
        if self.tried > MOST:
            self.accepted, self.tried = self.accepted * MOST / self.tried, MOST


@dataclass
class Pace:
    """Costs and rates of one model; kept from call to call. ``draft_seconds``: what one drafted token takes."""

    costs: dict[int, PassCost] = field(default_factory=dict)
    kinds: dict[Hashable, Acceptance] = field(default_factory=dict)
    draft_seconds: float = 0.0

    def cost(self, rows: int) -> PassCost:
        """What a pass over ``rows`` rows costs."""
        return self.costs.setdefault(rows, PassCost())

    def kind(self, name: Hashable, first_rate: float = FIRST_RATE) -> Acceptance:
        """How often drafts of this kind are accepted."""
        return self.kinds.setdefault(name, Acceptance(first_rate=first_rate))

    def best(self, rates: Sequence[float], most: Sequence[int], rows: int) -> int:
        """Drafted tokens per row that pay most.

        ``rates`` and ``most`` of every drafting row: its rate of acceptance and the tokens at hand.
        """
        cost = self.cost(rows)
        first = cost.seconds / cost.weight if cost.weight else 1.0
        slope = cost.slope + self.draft_seconds / first
        tokens, chances, best, highest = float(rows), [1.0] * len(rates), 0, MARGIN
        for count in range(1, max(most, default=0) + 1):
            for row, rate in enumerate(rates):
                chances[row] = chances[row] * rate if count <= most[row] else 0.0
            tokens += sum(chances)
            speed = tokens / rows / (1 + slope * count)
            if speed > highest:
                best, highest = count, speed
        return best
