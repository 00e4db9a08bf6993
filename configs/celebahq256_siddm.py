"""CelebA-HQ at 256x256 in 2 network calls: SIDDM (Xu et al. 2023) on the networks of DDGAN. Not run (no GPU here).

    jaxdiff train --config=configs/celebahq256_siddm.py --workdir=runs/celebahq256_siddm

The folder holds the 30,000 pictures. Published: FID 7.37. steps: T; smoke: seconds, on digits at 16x16 RGB.
"""

from celebahq256_ddgan import recipe


def get_config(arg: str = ""):
    return recipe("siddm", arg)
