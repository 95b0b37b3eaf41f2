-- One SELECT. What it reads is known from here: a load of shop.orders starts it.
SELECT sold_on AS day, count(*) AS orders
FROM shop.orders
GROUP BY sold_on
