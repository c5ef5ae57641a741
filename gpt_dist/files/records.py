"""Base of the records that JSON files hold."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Immutable record that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
