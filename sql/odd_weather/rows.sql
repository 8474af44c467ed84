SELECT origin, time_hour, temp, dewp, humid, wind_speed, wind_gust, precip, pressure, visib
FROM weather
WHERE time_hour >= :interval_start AND time_hour < :interval_end
