DELETE FROM nycflights13.weather
WHERE time_hour >= %(window_start)s
  AND time_hour < %(window_end)s
