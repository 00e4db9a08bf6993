"""A classifier of clean images, to judge samples with (agreement, Frechet distance of its features).

    jaxdiff train --config=configs/classifier.py:data=mnist5k,side=28 --workdir=runs/mnist5k_classifier
    jaxdiff evaluate --workdir=runs/mnist5k --classifier=runs/mnist5k_classifier

`jaxdiff evaluate` trains this very one beside a run when none is named.
data: any source; side: of its pictures, in pixels; steps: 0 suits the side; smoke: seconds.
"""

from jaxdiff.configfile import words
from jaxdiff.judge import classifier_config
from jaxdiff.tables import base


def get_config(arg: str = ""):
    arg = words(arg, data="digits", side=8, steps=0, smoke=False)
    data = base().data
    data.source, data.size = arg.data, arg.side
    return classifier_config(data, arg.side, steps=arg.steps, smoke=arg.smoke)
