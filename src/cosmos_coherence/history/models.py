"""The tables of the history, the same for PostgreSQL and SQLite."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Double, Float, Index, String, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Moment(TypeDecorator[datetime]):
    """A moment in UTC; SQLite forgets the zone of a time, so it is put back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store UTC."""
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Read UTC."""
        return value and (value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC))


class Base(DeclarativeBase):
    """Root of the models."""


class Run(Base):
    """One finished run. The columns are what is searched; the whole report lies beside them."""

    __tablename__ = "run"
    __table_args__ = (Index("run_newest", "ended_at"),)

    project: Mapped[str] = mapped_column(String(100), primary_key=True)
    run: Mapped[str] = mapped_column(String(100), primary_key=True)
    verb: Mapped[str] = mapped_column(String(100), primary_key=True)
    status: Mapped[str] = mapped_column(String(100))
    started_at: Mapped[datetime] = mapped_column(Moment)
    ended_at: Mapped[datetime] = mapped_column(Moment)
    pause_ms: Mapped[float | None] = mapped_column(Float)
    size: Mapped[int] = mapped_column(BigInteger)
    report: Mapped[dict[str, Any]] = mapped_column(JSON)


class Measured(Base):
    """One measurement. The same thing is measured once in a moment, so that writing it twice changes nothing."""

    __tablename__ = "measurement"

    subject: Mapped[str] = mapped_column(String(300), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    taken: Mapped[float] = mapped_column(Double, primary_key=True)
    value: Mapped[float] = mapped_column(Double)
