"""What fits a device: numbers that change speed and memory alone, and no result beyond rounding."""

import jax

TUNED_FOR = 2**33  # bytes; the numbers that `at_once` takes were chosen on a machine of so many


def device_bytes() -> int:
    """Give the memory that a device has for this program; 0 where it does not tell, as a CPU."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)


def at_once(count: int) -> int:
    """Give how many of what a CPU takes `count` of at a time fit a device: more in proportion to its memory."""
    return count * max(1, device_bytes() // TUNED_FOR)
