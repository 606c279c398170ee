SELECT
    day AS date,
    YEAR(day) AS year,
    QUARTER(day) AS quarter,
    MONTH(day) AS month,
    WEEKISO(day) AS iso_week,
    DAYOFWEEKISO(day) AS weekday,
    DAYOFWEEKISO(day) >= 6 AS is_weekend
FROM staged
