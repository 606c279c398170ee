-- Whole years: from the year before the first business day to the one after the last.
SELECT
    day::DATE AS date,
    year(day) AS year,
    quarter(day) AS quarter,
    month(day) AS month,
    weekofyear(day) AS iso_week,
    isodow(day) AS weekday,
    isodow(day) >= 6 AS is_weekend
FROM generate_series(
    date_trunc('year', DATE '{{ var("first_day") }}' - INTERVAL 1 YEAR),
    date_trunc('year', DATE '{{ var("last_day") }}' + INTERVAL 2 YEAR) - INTERVAL 1 DAY,
    INTERVAL 1 DAY
) AS days (day)
