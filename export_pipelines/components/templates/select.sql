-- What is exported: one statement that only reads, a SELECT or a COPY (SELECT …) TO STDOUT.
-- Parameters: %(window_start)s, %(window_end)s, %(export_boundary)s (the end of the window), %(partition_key)s.
SELECT *
FROM public.my_table
WHERE created_at >= %(window_start)s
  AND created_at < %(window_end)s
