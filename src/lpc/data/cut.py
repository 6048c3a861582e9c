"""Warnings where many prompts or completions do not fit into the limits of `tokens`; torch is not imported."""

MANY = 0.1
"""Share above which a warning is due."""


def cut_warnings(shares: dict[str, float], *, max_length: int, max_prompt_length: int) -> list[str]:
    """Return a warning for each limit that cuts more than the share `MANY`.

    shares: of prompts, chosen and rejected completions that are cut, as `PairTokens.cut_shares` gives them.
    """
    found = []
    if shares["prompts"] > MANY:
        share = f"{100 * shares['prompts']:.0f} %"
        found.append(f"{share} have a prompt that is cut; raise tokens.max_prompt_length ({max_prompt_length})")
    if max(shares["chosen"], shares["rejected"]) > MANY:
        chosen, rejected = (f"{100 * shares[name]:.0f} %" for name in ("chosen", "rejected"))
        found.append(
            f"{chosen} have a chosen completion without its end, and {rejected} a rejected one; raise "
            f"tokens.max_length ({max_length})"
        )
    return found
