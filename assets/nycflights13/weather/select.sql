SELECT
    origin,
    time_hour,
    time_hour AT TIME ZONE 'America/New_York' AS local_time,
    year,
    month,
    day,
    hour,
    temp,
    dewp,
    humid,
    wind_dir,
    wind_speed,
    wind_gust,
    precip,
    pressure,
    visib
FROM nycflights13.weather
WHERE time_hour >= %(window_start)s
  AND time_hour < %(window_end)s
ORDER BY time_hour, origin
