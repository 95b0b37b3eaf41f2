SELECT f.month::int AS month,
       f.carrier,
       a.name AS airline,
       count(*)::int AS flights,
       count(*) FILTER (WHERE f.dep_time IS NULL)::int AS cancelled,
       count(*) FILTER (WHERE f.dep_delay > 15)::int AS late,
       round(avg(f.dep_delay), 1)::numeric(6, 1) AS mean_dep_delay,
       round(avg(f.arr_delay), 1)::numeric(6, 1) AS mean_arr_delay
FROM nycflights13.flights AS f
JOIN nycflights13.airlines AS a USING (carrier)
GROUP BY f.month, f.carrier, a.name
