"""Receptive fields of any network: worked out, measured, compared, and looked at.

Read rules (what each op reads), graph (the walk over a network), analysis (the numbers of each
layer), then probes (the measurement), effective (how much each pixel counts) and claims (the
paper's). What happens along one axis is in `tinydilate.field`.
"""

from tinydilate.receptive_field.analysis import Analysis, Layer, Patch, analyse, format_table
from tinydilate.receptive_field.claims import Claim, claims
from tinydilate.receptive_field.effective import EffectiveField, closed_form_sigma, effective
from tinydilate.receptive_field.probes import measure, probe
from tinydilate.receptive_field.rules import Along, Reading, pointwise, rule
from tinydilate.receptive_field.verification import Verification, verify

__all__ = [
    "Along",
    "Analysis",
    "Claim",
    "EffectiveField",
    "Layer",
    "Patch",
    "Reading",
    "Verification",
    "analyse",
    "claims",
    "closed_form_sigma",
    "effective",
    "format_table",
    "measure",
    "pointwise",
    "probe",
    "rule",
    "verify",
]
