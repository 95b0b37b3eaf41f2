-- Which rows a cleanup may delete: one DELETE. Of those that it matches, only rows which are proved to be in the
-- archive are deleted. Without this file nothing is ever deleted.
DELETE FROM public.my_table
WHERE created_at >= %(window_start)s
  AND created_at < %(window_end)s
