"""Models: families of decoder-only Transformers on tensor-parallel layers, and their weights."""

from gpt_dist.model.decoder import GPT as GPT
from gpt_dist.model.families import family_of as family_of
from gpt_dist.model.flops import flops_per_token as flops_per_token
from gpt_dist.model.flops import peak_flops as peak_flops
from gpt_dist.model.folder import ModelFolder as ModelFolder
from gpt_dist.model.folder import write_model_folder as write_model_folder
from gpt_dist.model.parameters import GrownVocabulary as GrownVocabulary
from gpt_dist.model.parameters import load_full_tensors as load_full_tensors
from gpt_dist.model.parameters import load_model as load_model
from gpt_dist.model.parameters import num_parameters as num_parameters
from gpt_dist.model.parameters import parameter_table as parameter_table
from gpt_dist.model.probe import agrees as agrees
from gpt_dist.model.probe import probe_loss as probe_loss
from gpt_dist.model.released import ReleasedWeights as ReleasedWeights
