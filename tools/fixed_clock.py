"""Importing this has transformers tell chat templates one time, for goldens that do not change."""

import datetime

from transformers.utils import chat_template_utils

# 2026-11-21 07:05:09, a Saturday.
NOW = datetime.datetime(2026, 11, 21, 7, 5, 9)


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


chat_template_utils.datetime = FixedClock
