-- One query that only reads. Filters, sorting and the row limit are put around it.
SELECT id, name, created_at
FROM public.my_table
