"""Receptive fields of any network: worked out, measured, compared, and looked at.

Read rules (what each op reads), graph (the walk over a network), analysis (the numbers of each
layer), then probes (the measurement), verification (both compared), effective_field (how much each
pixel counts), hybrid_rule (a rule of thumb) and paper_claims (what the paper says). What happens
along one axis is in `tinydilate.field`.
"""

from tinydilate.receptive_field.analysis import Analysis, Layer, Patch, analyse, format_table
from tinydilate.receptive_field.effective_field import EffectiveField, closed_form_sigma, effective
from tinydilate.receptive_field.paper_claims import Claim, claims
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
