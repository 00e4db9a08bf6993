"""Other people's weights: files that the user names, into the parameters of this house's networks."""

from jaxdiff.interop.text_weights import encoder_of_config as encoder_of_config
from jaxdiff.interop.text_weights import load_text_encoder as load_text_encoder
