"""scikit-learn's contract, without importing scikit-learn before somebody asks for it."""

from __future__ import annotations

import inspect
from typing import Any, Self

from rada.core.errors import ConfigError

__all__ = ["Estimator"]


class Estimator:
    """Parameters are what the constructor takes, kept as attributes of the same names.

    So `sklearn.base.clone`, `cross_val_score` and `GridSearchCV` work. (`sklearn.base.BaseEstimator` does
    the same; importing it takes as long as half of torch.)
    """

    @classmethod
    def _parameters(cls) -> list[str]:
        found = list(inspect.signature(cls.__init__).parameters)
        return [name for name in found if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name.

        Args:
            deep: Taken for scikit-learn's sake; there are no parameters within parameters.
        """
        del deep
        return {name: getattr(self, name) for name in self._parameters()}

    def set_params(self, **params: Any) -> Self:
        """Set parameters; return the estimator itself.

        Raises:
            ConfigError: If there is no such parameter.
        """
        known = self._parameters()
        for name, value in params.items():
            if name not in known:
                raise ConfigError(
                    f"{type(self).__name__} has no parameter {name!r}; it has {', '.join(known)}"
                )
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        """Say to scikit-learn that this is a classifier."""
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(),
            requires_fit=False,  # before fit it is the zero-shot model
        )
