package queue

import (
	"testing"
	"time"
)

// TestRecoverFinishesWhatIsOnRecord: a power cut took the removals of finished mails back. Their jobs may be handed out again:
// they must find nothing to send.
func TestRecoverFinishesWhatIsOnRecord(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	whole, half, open, cancelled := NewID(), NewID(), NewID(), NewID()
	job := q.storeMail(t, whole, "one.test")[0]
	q.storeJob(t, q.readySpot("one.test"), job, 1)
	halfJob := q.storeJob(t, q.readySpot("one.test"), q.storeMail(t, half, "one.test", "two.test")[0], 1)
	q.storeMail(t, open, "one.test")
	q.storeMail(t, cancelled, "one.test")
	now := time.Now()
	q.Record(Event{Type: Finished, ID: whole, Time: now})
	q.Record(Event{Type: Finished, ID: half, Part: 1, Time: now})
	q.Record(Event{Type: TransientFailure, ID: open, Time: now})
	q.Record(Event{Type: AdminBounce, ID: cancelled, Time: now})
	q.events.flush(t.Context())

	report, err := q.Recover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if report.Finished != 3 || report.Orphans != 1 {
		t.Errorf("got %d parts finished and %d jobs dropped, want 3 and 1", report.Finished, report.Orphans)
	}
	q.want(t, mailSubject(KindMail, half), doneSubject(KindMail, half, 1), mailSubject(KindMail, open), halfJob.subject())
	if _, err := q.Recover(t.Context()); err != nil { // once more changes nothing
		t.Fatal(err)
	}
	q.want(t, mailSubject(KindMail, half), doneSubject(KindMail, half, 1), mailSubject(KindMail, open), halfJob.subject())
}

// TestRecoverDropsJobsWithoutMail: acknowledgements that a kill left unwritten bring finished jobs back. A job whose mail may yet be
// found, because the store is behind it, stays.
func TestRecoverDropsJobsWithoutMail(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	there := q.storeMail(t, NewID(), "one.test")[0]
	gone, later, behind := there, there, there
	gone.ID, later.ID, behind.ID, behind.MailSeq = NewID(), NewID(), NewID(), 1000
	stays := q.storeJob(t, q.readySpot("one.test"), there, 1)
	q.storeJob(t, q.readySpot("one.test"), gone, 1)
	q.storeJob(t, laterSpot("1h"), later, 2)
	waits := q.storeJob(t, q.readySpot("one.test"), behind, 1)
	report, err := q.Recover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if report.Orphans != 2 {
		t.Errorf("got %d jobs dropped, want 2", report.Orphans)
	}
	q.want(t, mailSubject(KindMail, there.ID), stays.subject(), waits.subject())
}
