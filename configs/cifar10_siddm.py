"""CIFAR-10, unconditional, in 4 network calls: SIDDM (Xu et al. 2023) on DDGAN's networks. Not run (no GPU here).

    jaxdiff data prepare tfds:cifar10
    jaxdiff train --config=configs/cifar10_siddm.py --workdir=runs/cifar10_siddm

Published: FID 2.24, IS 9.85, recall .61; lambda (loss.weight) 0, .1, .5, 1, 5, inf: FID 77.15, 3.32, 2.63, 2.24, 2.55,
41.27; without the discriminator's denoising (loss.denoise=0) 3.20. steps: T; smoke: seconds, on digits at 16x16 RGB.
"""

from cifar10_ddgan import recipe


def get_config(arg: str = ""):
    return recipe("siddm", arg)
