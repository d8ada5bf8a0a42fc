"""Questions in SQL: their options, the formats of answers, and the prompt of `raymask shell`."""
