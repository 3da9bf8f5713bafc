"""Floating-point operations of training and inference as seed 003 counts them (arXiv 2411.13117, equations 17 to
31): `paper` of src/lab/flops.h, for the axis of the figures."""

from dataclasses import dataclass


@dataclass
class Shape:
    width: int              # M
    latents: int            # N
    samples: int            # n, all of them a step
    hidden: int = 0         # of an MLP encoder, 0 = none
    learns: bool = True     # the dictionary


def encoder_step(s: Shape) -> int:
    """One step of an SAE (23 to 25) or of an MLP (27 to 29)."""
    m, n, h, mn = s.width, s.latents, s.hidden, s.width * s.latents
    learnt = mn if s.learns else 0
    if h == 0:
        one = (2 * mn + n + 2 * mn) + n + (2 * mn + n) + 2 * mn + 2 * (mn + n)
    else:
        forward = 2 * m * h + h + 2 * h * n + n + 2 * mn
        one = forward + n + (2 * h * n + n) + h + (2 * m * h + h) + 2 * mn + 2 * (m * h + h + h * n + n)
    return (one + 3 * learnt) * s.samples


def coding_step(s: Shape) -> int:
    """One step of gradient sparse coding (18 to 22), which are charged for the full batch n times, as there."""
    mn, learnt = s.width * s.latents, s.width * s.latents if s.learns else 0
    forward = 3 * learnt + s.latents + 2 * mn
    return (3 * forward + (2 * s.width + s.latents) * s.samples + s.latents * s.samples + learnt) * s.samples


def encoder_inference(s: Shape) -> int:
    """(26), (30)."""
    mn = s.width * s.latents
    into = 2 * s.width * s.hidden + s.hidden + 2 * s.hidden * s.latents if s.hidden else 2 * mn
    return (into + s.latents + 2 * mn) * s.samples


def ito(s: Shape, iterations: int) -> int:
    """(31)."""
    mn = s.width * s.latents
    return s.samples * ((mn + s.latents) + iterations * (4 * mn + 2 * s.width + 11 * s.latents))
