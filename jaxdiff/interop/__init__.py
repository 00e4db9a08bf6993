"""Other people's weights, in files or in modules of torch that the user names, into this house's parameters."""

from jaxdiff.interop.text_weights import encoder_of_config as encoder_of_config
from jaxdiff.interop.text_weights import load_text_encoder as load_text_encoder
from jaxdiff.interop.unet_weights import unet_params as unet_params
