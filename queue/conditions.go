package queue

import "time"

// Conditions are what is wrong with the queue as this process sees it.
func (q *Queue) Conditions() []Condition {
	var list []Condition
	if err := q.Ready(); err != nil {
		list = append(list, Condition{Part: "queue", Since: time.Unix(0, q.lastOK.Load()), Text: "the servers of the queue do not answer: new mail is answered 451",
			Do: "see that two of three queue servers run and that this machine reaches them (queue.urls)"})
	} else {
		list = append(list, q.leases.conditions(time.Now())...)
	}
	if at := q.fullAt.Load(); at > 0 {
		list = append(list, Condition{Part: "queue", Since: time.Unix(0, at), Text: "the queue is above its watermark of 85 %: new mail is answered 452",
			Do: "find out below why mail waits; to take more, raise queue.max_bytes, and the room of the queue servers with it"})
	}
	return list
}
