"""A classifier of pictures at every noise level of a method, for classifier guidance (Dhariwal & Nichol 2021, section 4).

    jaxdiff train --config=configs/noisy_classifier.py:data=digits,side=8,method=edm --workdir=runs/digits_noisy
    jaxdiff sample --workdir=runs/digits --guidance=classifier:run=runs/digits_noisy,scale=2 --label=3 --out=threes.png

data, side, method: those of the run that it will guide; side in pixels; steps: 0 suits the side; smoke: seconds.
method: ddpm, iddpm, score_vp, score_ve, subvp, edm (default), flow. The end of training tells its accuracy by noise level.
"""

from common import METHODS

from jaxdiff.configfile import words
from jaxdiff.judge import classifier_config
from jaxdiff.tables import base, pick


def get_config(arg: str = ""):
    arg = words(arg, data="digits", side=8, method="edm", steps=0, smoke=False)
    method = pick(METHODS, arg.method, "method")
    data = base().data
    data.source = arg.data
    # harder than clean pictures, so longer
    config = classifier_config(data, arg.side, steps=arg.steps or (800 if arg.side <= 16 else 3000), smoke=arg.smoke)
    config.name = f"noisy_classifier_{arg.method}"
    with config.ignore_type():
        config.path.update(method["path"])
        config.times.update(method["times"])
        config.loss.smoothing = None  # log p(label | x_t) itself is wanted, not a softened one
    return config
