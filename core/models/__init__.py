"""Every kind of model that a study may name: a file each, a row here."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from fedrounds.core.models.boosting import Boosting
from fedrounds.core.models.cox import Cox
from fedrounds.core.models.huber import Huber
from fedrounds.core.models.kmeans import KMeans
from fedrounds.core.models.linear import Linear
from fedrounds.core.models.log_linear import Gamma, Poisson
from fedrounds.core.models.logistic import Logistic
from fedrounds.core.models.mlp import Mlp
from fedrounds.core.models.module import Module
from fedrounds.core.models.multinomial import Multinomial
from fedrounds.core.models.naive_bayes import NaiveBayes
from fedrounds.core.models.negative_binomial import NegativeBinomial
from fedrounds.core.models.ordinal import Ordinal
from fedrounds.core.models.pca import Pca
from fedrounds.core.models.svm import Svm

Model = Annotated[
    Linear
    | Huber
    | Logistic
    | Svm
    | Poisson
    | Gamma
    | NegativeBinomial
    | Multinomial
    | Ordinal
    | NaiveBayes
    | Cox
    | Mlp
    | Module
    | Boosting
    | KMeans
    | Pca,
    Field(discriminator="kind"),
]


def fitting(target: str) -> tuple[str, ...]:
    """The kinds of models that predict such a target."""
    (union, _) = get_args(Model)
    return tuple(
        get_args(model.model_fields["kind"].annotation)[0] for model in get_args(union) if target in model.targets
    )
