package bounceclass

import (
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func classifier(t testing.TB, first ...Rule) *Classifier {
	t.Helper()
	c, err := New(first)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What receivers say, one by one: code, enhanced code, text.
var replies = []struct {
	want     Class
	code     int
	enhanced string
	text     string
}{
	// Gmail
	{InvalidRecipient, 550, "5.1.1", "The email account that you tried to reach does not exist. Please try double-checking the recipient's email address for typos or unnecessary spaces. For more information, go to https://support.google.com/mail/?p=NoSuchUser a1-20020a.42 - gsmtp"},
	{InvalidRecipient, 550, "5.1.1", "The email account that you tried to 550-5.1.1 reach does not exist. Please try 550-5.1.1 double-checking - gsmtp"},
	{Inactive, 550, "5.2.1", "The email account that you tried to reach is disabled. For more information, go to https://support.google.com/mail/?p=DisabledUser - gsmtp"},
	{Inactive, 550, "5.2.1", "The email account that you tried to reach is inactive. gsmtp"},
	{MailboxFull, 452, "4.2.2", "The email account that you tried to reach is over quota. Please direct the recipient to https://support.google.com/mail/?p=OverQuotaTemp - gsmtp"},
	{MailboxFull, 552, "5.2.2", "The recipient's inbox is out of storage space. Please direct the recipient to https://support.google.com/mail/?p=OverQuotaPerm - gsmtp"},
	{RateLimited, 450, "4.2.1", "The user you are trying to contact is receiving mail at a rate that prevents additional messages from being delivered. Please resend your message at a later time. - gsmtp"},
	{RateLimited, 421, "4.7.28", "Our system has detected an unusual rate of unsolicited mail originating from your IP address. To protect our users from spam, mail sent from your IP address has been temporarily rate limited. - gsmtp"},
	{SpamContent, 550, "5.7.1", "[192.0.2.1 12] Our system has detected that this message is likely unsolicited mail. To reduce the amount of spam sent to Gmail, this message has been blocked. - gsmtp"},
	{Reputation, 550, "5.7.1", "[192.0.2.1] Our system has detected that this message is likely suspicious due to the very low reputation of the sending domain. To best protect our users from spam, the message has been blocked. - gsmtp"},
	{AuthFailure, 550, "5.7.26", "Unauthenticated email from example.com is not accepted due to domain's DMARC policy. Please contact the administrator of example.com domain if this was a legitimate mail. - gsmtp"},
	{AuthFailure, 550, "5.7.26", "This mail has been blocked because the sender is unauthenticated. Gmail requires all senders to authenticate with either SPF or DKIM. - gsmtp"},
	{DNS, 550, "5.7.25", "The IP address sending this message does not have a PTR record setup, or the corresponding forward DNS entry does not point to the sending IP. - gsmtp"},
	{Malware, 552, "5.7.0", "This message was blocked because its content presents a potential security issue. - gsmtp"},
	{RateLimited, 550, "5.4.5", "Daily user sending limit exceeded. For more information on Gmail sending limits go to - gsmtp"},
	{DNS, 553, "5.1.2", "We weren't able to find the recipient domain. Please check for any spelling errors. - gsmtp"},
	{Policy, 550, "5.7.1", "The user or domain that you are sending to (or from) has a policy that prohibited the mail that you sent. - gsmtp"},
	{TLS, 530, "5.7.0", "Must issue a STARTTLS command first. - gsmtp"},
	{Server, 451, "4.3.0", "Mail server temporarily rejected message. - gsmtp"},
	{Size, 552, "5.3.4", "Your message exceeded Google's message size limits. - gsmtp"},
	{Relaying, 550, "5.7.1", "Relaying denied"},
	// of the sender, not of the recipient
	{Policy, 550, "5.1.0", "<alice@example.org>: Sender address rejected: User unknown in virtual mailbox table"},
	{Policy, 550, "", "Sender verify failed: 550 no such user"},
	{Policy, 550, "", "Verification failed for <alice@example.org>: no such user here"},
	{Policy, 550, "", "Callout verification failed: 550 unknown user"},
	// Microsoft
	{InvalidRecipient, 550, "5.1.10", "RESOLVER.ADR.RecipientNotFound; Recipient bob@example.com not found by SMTP address lookup"},
	{InvalidRecipient, 550, "5.5.0", "Requested action not taken: mailbox unavailable (S2017062302). [AM1.eop-EUR05.prod.protection.outlook.com]"},
	{InvalidRecipient, 550, "5.4.1", "Recipient address rejected: Access denied. AS(201806281) [DB5EUR01FT.eop-EUR01.prod.protection.outlook.com]"},
	{Reputation, 550, "5.7.1", "Unfortunately, messages from [192.0.2.1] weren't sent. Please contact your Internet service provider since part of their network is on our block list (S3140). You can also refer your provider to http://mail.live.com/mail/troubleshooting.aspx#errors."},
	{RateLimited, 451, "4.7.650", "The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation. For e-mail delivery information, see https://aka.ms/postmaster (S775)"},
	{Reputation, 550, "5.7.606", "Access denied, banned sending IP [192.0.2.1]. To request removal from this list please visit https://sender.office.com/ AS(1430)"},
	{Reputation, 550, "5.7.1", "Service unavailable, Client host [192.0.2.1] blocked using Spamhaus. To request removal from this list see https://www.spamhaus.org/query/ip/192.0.2.1 AS(1450)"},
	{AuthFailure, 550, "5.7.509", "Access denied, sending domain example.com does not pass DMARC verification and has a DMARC policy of reject. [X.prod.outlook.com]"},
	{AuthFailure, 550, "5.7.515", "Access denied, sending domain example.com does not meet the required authentication level."},
	{AuthFailure, 550, "5.7.23", "The message was rejected because of Sender Policy Framework violation -> 550 5.7.1 Not allowed"},
	{MailboxFull, 554, "5.2.2", "mailbox full; STOREDRV.Deliver.Exception:QuotaExceededException.MapiExceptionShutoffQuotaExceeded"},
	{Relaying, 550, "5.7.64", "TenantAttribution; Relay Access Denied [X.prod.outlook.com]"},
	{Reputation, 550, "5.7.501", "Service unavailable. Spam abuse detected from IP range. AS(1410)"},
	{Server, 451, "4.7.500", "Server busy. Please try again later from [192.0.2.1]. (S77719) [X.prod.outlook.com]"},
	{Policy, 550, "5.7.133", "RESOLVER.RST.SenderNotAuthenticatedForGroup; authentication required; Delivery restriction check failed because the sender was not authenticated when sending to this group; sender rejected by policy"},
	{Server, 432, "4.3.2", "STOREDRV.ClientSubmit; sender thread limit exceeded"},
	{DNS, 550, "5.4.310", "DNS domain example.com does not exist [Message=InfoDomainNonexistent]"},
	// Yahoo, AOL
	{RateLimited, 421, "4.7.0", "[TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints - 4.16.55.1; see https://postmaster.yahooinc.com/error-codes"},
	{Reputation, 553, "5.7.1", "[BL21] Connections will not be accepted from 192.0.2.1, because the ip is in Spamhaus's list; see https://postmaster.yahooinc.com/550-bl23"},
	{Policy, 554, "5.7.9", "Message not accepted for policy reasons. See https://postmaster.yahooinc.com/error-codes"},
	{InvalidRecipient, 554, "", "delivery error: dd This user doesn't have a yahoo.com account (bob@yahoo.com) [0] - mta1.mail.bf1.yahoo.com"},
	{InvalidRecipient, 554, "", "delivery error: dd Not a valid recipient - atlas1.free.mail.bf2.yahoo.com"},
	{Inactive, 554, "", "30 Sorry, your message to bob@yahoo.com cannot be delivered. This mailbox is disabled (554.30)."},
	{InvalidRecipient, 552, "", "1 Requested mail action aborted, mailbox not found"},
	// Apple
	{MailboxFull, 552, "5.2.2", "<bob@icloud.com>: user is over quota"},
	{InvalidRecipient, 550, "5.1.1", "<bob@icloud.com>: user does not exist"},
	{Inactive, 550, "5.1.1", "<bob@icloud.com>: inactive email address"},
	{Policy, 554, "5.7.1", "[CS01] Message rejected due to local policy. Please visit https://support.apple.com/en-us/HT204137"},
	{Reputation, 550, "5.7.0", "Blocked - see https://support.proofpoint.com/dnsbl-lookup.cgi?ip=192.0.2.1"},
	// GMX, web.de, 1&1
	{InvalidRecipient, 550, "", "Requested action not taken: mailbox unavailable"},
	{DNS, 550, "", "Requested action not taken: mailbox unavailable invalid DNS MX or A/AAAA resource record. For explanation visit https://postmaster.gmx.net/"},
	{Policy, 554, "", "Transaction failed Reject due to policy restrictions. For explanation visit https://postmaster.gmx.net/en/case?c=r1601"},
	{MailboxFull, 552, "", "Requested mail action aborted: exceeded storage allocation. Quota exceeded. The recipient's mailbox is full."},
	{Reputation, 554, "", "gmx.net (mxgmx016) Nemesis ESMTP Service not available. No SMTP service. IP address is black listed. For explanation visit"},
	{RateLimited, 450, "", "Requested mail action not taken: mailbox unavailable. Mail send limit exceeded."},
	// T-Online
	{Reputation, 554, "", "IP=192.0.2.1 - A problem occurred. (Ask your postmaster for help or to contact tosa@rx.t-online.de to clarify.) (BL)"},
	{Malware, 550, "5.7.0", "Message considered as spam or virus, rejected"},
	{InvalidRecipient, 550, "5.1.1", "unknown user"},
	{Reputation, 554, "", "IP=192.0.2.1 - None/bad reputation. Ask your postmaster for help or to contact tobr@rx.t-online.de"},
	// mail.ru, Yandex
	{SpamContent, 550, "", "spam message rejected. Please visit http://help.mail.ru/notspam-support/id?c=x or report details"},
	{InvalidRecipient, 550, "", "Message was not accepted -- invalid mailbox. Local mailbox bob@mail.ru is unavailable: user not found"},
	{Reputation, 550, "", "Access from ip address 192.0.2.1 blocked. Visit http://help.mail.ru/notspam-support/"},
	{RateLimited, 451, "4.7.1", "Sorry, the service is currently unavailable. Ratelimit exceeded for your address"},
	{SpamContent, 554, "5.7.1", "[1] Message rejected under suspicion of SPAM; https://ya.cc/1IrBc"},
	{InvalidRecipient, 550, "5.7.1", "No such user!"},
	// Chinese receivers
	{SpamContent, 554, "", "DT:SPM 163 mx1,NsCowAA 1 https://mail.163.com/help/help_spam_16.htm"},
	{InvalidRecipient, 550, "", "Mailbox unavailable or access denied [MFqGd 192.0.2.1]."},
	{DNS, 550, "", "Domain may not exist or DNS check failed [abc 192.0.2.1]. https://service.mail.qq.com"},
	{RateLimited, 550, "", "Ip frequency limited [abc 192.0.2.1]. https://service.mail.qq.com/detail/122/172"},
	{RateLimited, 550, "", "Connection frequency limited"},
	{SpamContent, 550, "", "Mail content denied [abc IP: 192.0.2.1]. https://service.mail.qq.com"},
	// Comcast, Orange, Free, LaPoste
	{RateLimited, 421, "4.1.0", "192.0.2.1 Throttled - try again later. Please see http://postmaster.comcast.net/smtp-error-codes.php#RL000001"},
	{InvalidRecipient, 550, "5.1.1", "Not our Customer"},
	{Reputation, 554, "", "resimta-po-01v.sys.comcast.net comcast 192.0.2.1 found on one or more DNSBLs, see http://postmaster.comcast.net/smtp-error-codes.php#BL000001"},
	{Reputation, 550, "5.2.0", "Mail rejete. Mail rejected. ofr_506 [506]"},
	{RateLimited, 421, "", "mwinf5c04 ME Trop de connexions, veuillez verifier votre configuration. Too many connections, slow down. OFR004_104 [104]"},
	{MailboxFull, 552, "5.2.2", "La boite aux lettres est pleine"},
	// Postfix
	{InvalidRecipient, 550, "5.1.1", "<bob@example.com>: Recipient address rejected: User unknown in virtual mailbox table"},
	{Greylisted, 450, "4.2.0", "<bob@example.com>: Recipient address rejected: Greylisted, see http://postgrey.schweikert.ch/help/example.com.html"},
	{Relaying, 554, "5.7.1", "<bob@example.com>: Relay access denied"},
	{Reputation, 554, "5.7.1", "Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org; https://www.spamhaus.org/query/ip/192.0.2.1"},
	{DNS, 450, "4.7.25", "Client host rejected: cannot find your hostname, [192.0.2.1]"},
	{Server, 452, "4.3.1", "Insufficient system storage"},
	{Size, 552, "5.3.4", "Message size exceeds fixed limit"},
	{DNS, 550, "5.1.8", "<alice@example.org>: Sender address rejected: Domain not found"},
	{Policy, 554, "5.7.1", "<alice@example.org>: Sender address rejected: Access denied"},
	{RateLimited, 421, "4.7.0", "mx.example.com Error: too many connections from 192.0.2.1"},
	{InvalidRecipient, 450, "4.1.1", "<bob@example.com>: Recipient address rejected: unverified address: host mx said: user unknown"},
	{Inactive, 550, "5.2.1", "<bob@example.com>: Recipient address rejected: this mailbox has been disabled"},
	{Protocol, 504, "5.5.2", "<relay>: Helo command rejected: need fully-qualified hostname"},
	{SpamContent, 554, "5.7.1", "Spam message rejected; If this is not spam contact abuse team"},
	{Server, 451, "4.3.5", "Server configuration error"},
	// Exim, qmail, Sendmail
	{InvalidRecipient, 550, "", "Unrouteable address"},
	{Relaying, 550, "", "relay not permitted"},
	{Relaying, 553, "", "sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)"},
	{InvalidRecipient, 550, "", "sorry, no mailbox here by that name. (#5.1.1)"},
	{Server, 451, "", "Temporary local problem - please try later"},
	{Policy, 550, "", "Administrative prohibition"},
	{InvalidRecipient, 550, "5.1.1", "<bob@example.com>... User unknown"},
	{DNS, 550, "5.7.1", "Fix reverse DNS for 192.0.2.1"},
	{Reputation, 550, "", "rejected because 192.0.2.1 is in a black list at bl.example.net"},
	{AuthFailure, 550, "5.7.1", "SPF check failed: example.org does not designate 192.0.2.1"},
	{Greylisted, 451, "4.7.1", "Please try again in 300 seconds"},
	{MailboxFull, 452, "4.2.2", "Mailbox size limit exceeded"},
	// gateways
	{Reputation, 554, "5.7.1", "Blocked - see https://ipcheck.proofpoint.com/?ip=192.0.2.1"},
	{Policy, 550, "5.7.0", "Local Policy Violation - 5.7.0"},
	{InvalidRecipient, 550, "", "Invalid Recipient - https://community.mimecast.com/docs/DOC-1369#550 [abc.us1]"},
	{Policy, 554, "", "Email rejected due to security policies - https://community.mimecast.com/docs/DOC-1369#554"},
	{Server, 451, "", "Internal resources are temporarily unavailable - https://community.mimecast.com/docs/DOC-1369#451"},
	{Reputation, 554, "", "mx.example.com Your access to this mail system has been rejected due to the sending MTA's poor reputation. If you believe that this failure is in error, please contact the intended recipient via alternate means."},
	{InvalidRecipient, 550, "", "#5.1.0 Address rejected: recipient unknown"},
	{RateLimited, 452, "", "Too many recipients received this hour"},
	{RateLimited, 421, "", "#4.4.5 Too many connections from your host."},
	{Reputation, 550, "", "Service unavailable; Client host [192.0.2.1] blocked using Barracuda Reputation; http://www.barracudanetworks.com/reputation/?r=1&ip=192.0.2.1"},
	{Malware, 554, "5.7.1", "Virus (Eicar-Test-Signature) detected"},
	{Malware, 552, "5.7.0", "Attachment type not allowed. File invoice.exe"},
	// codes alone
	{InvalidRecipient, 550, "5.1.1", ""},
	{MailboxFull, 452, "4.2.2", ""},
	{Inactive, 550, "5.2.1", ""},
	{Greylisted, 450, "4.7.1", "please wait"},
	{Policy, 550, "5.7.1", ""},
	{RateLimited, 421, "", "closing"},
	{Server, 451, "", ""},
	{Routing, 554, "5.4.6", ""},
	{Content, 550, "5.6.7", ""},
	{InvalidRecipient, 0, "5.1.1", ""},
	{MailboxFull, 0, "5.2.2", ""},
	{Protocol, 503, "", "bad sequence"},
	{Unknown, 550, "", "xyz"},
	{Unknown, 0, "", ""},
	{Unknown, 554, "5.0.0", "nope"},
}

func TestE6_82_RepliesOfReceivers(t *testing.T) {
	c := classifier(t)
	for _, tt := range replies {
		if got := c.Class(Reply{Code: tt.code, Enhanced: tt.enhanced, Text: tt.text}); got != tt.want {
			t.Errorf("%d %s %.120s: got %s, want %s", tt.code, tt.enhanced, tt.text, got, tt.want)
		}
	}
}

func TestOurOwnReplies(t *testing.T) {
	c := classifier(t)
	for _, tt := range []struct {
		want     Class
		code     int
		enhanced string
		text     string
	}{
		{Connection, 451, "4.4.1", "cannot connect (connect)"},
		{Connection, 451, "4.4.2", "timed out (dot)"},
		{TLS, 451, "4.7.5", "TLS handshake failed (starttls)"},
		{TLS, 451, "4.7.4", "the policy wants TLS and the host does not give it (starttls)"},
		{TLS, 451, "4.7.0", "the MTA-STS policy of example.org does not name the host mx.example.com"},
		{TLS, 550, "5.7.30", "the message needs REQUIRETLS and the host does not give it"},
		{Signing, 451, "4.7.5", "no DKIM key for example.org"},
		{DNS, 451, "4.4.3", "find a host for example.com: name service failed"},
		{DNS, 550, "5.1.2", "find a host for example.com: no such domain"},
		{DNS, 556, "5.1.10", "find a host for example.com: the domain takes no mail"},
		{Routing, 554, "5.4.6", "find a host for example.com: mail for the domain loops back to this host"},
		{Expired, 550, "5.4.7", "not delivered by 2026-11-24T09:30:00Z, as its sender asked"},
		{RateLimited, 451, "4.4.5", "site is busy: all connections to it are in use"},
		{Size, 552, "5.3.4", "the message is larger than the host accepts"},
		{Content, 550, "5.6.7", "the message needs SMTPUTF8 and the host does not offer it"},
		{Protocol, 451, "4.5.0", "reply not understood (ehlo)"},
		{Unknown, 451, "", "spam"},
	} {
		if got := c.Class(Reply{Code: tt.code, Enhanced: tt.enhanced, Text: tt.text, Local: true}); got != tt.want {
			t.Errorf("%d %s %s: got %s, want %s", tt.code, tt.enhanced, tt.text, got, tt.want)
		}
	}
}

func TestRulesOfOperatorsComeFirst(t *testing.T) {
	c := classifier(t, Rule{Class: "gateway", Code: "554", Text: `corporate gateway \d+`}, Rule{Class: "policy", Enhanced: "5.1.1", Code: "55x"}, Rule{Class: "connection", Code: "local", Enhanced: "*.4.3"},
		Rule{Class: "odd", Text: `(?i)FIRST ODD|SECOND ODD`}, Rule{Class: "odd", Text: `[^]|]{3}third odd`})
	for _, tt := range []struct {
		reply Reply
		want  Class
	}{
		{Reply{Code: 554, Text: "Corporate  Gateway 12 says user unknown"}, "gateway"},
		{Reply{Code: 550, Text: "Corporate Gateway 12 says user unknown"}, InvalidRecipient},
		{Reply{Code: 550, Enhanced: "5.1.1", Text: "user unknown"}, Policy},
		{Reply{Code: 450, Enhanced: "5.1.1", Text: "user unknown"}, InvalidRecipient},
		{Reply{Code: 451, Enhanced: "4.4.3", Local: true}, Connection},
		{Reply{Code: 550, Text: "second odd"}, "odd"},
		{Reply{Code: 550, Text: "the third odd"}, "odd"},
	} {
		if got := c.Class(tt.reply); got != tt.want {
			t.Errorf("%+v: got %s, want %s", tt.reply, got, tt.want)
		}
	}
	classes := c.Classes()
	if classes[len(classes)-2] != "gateway" || classes[0] != Unknown {
		t.Errorf("got classes %v", classes)
	}
}

func TestBadRules(t *testing.T) {
	for name, rule := range map[string]Rule{
		"class":         {Class: "Bad"},
		"no class":      {},
		"code":          {Class: "policy", Code: "55"},
		"code x":        {Class: "policy", Code: "1xx"},
		"enhanced":      {Class: "policy", Enhanced: "5.1"},
		"text":          {Class: "policy", Text: "(a"},
		"text too long": {Class: "policy", Text: strings.Repeat("a", maxPattern+1)},
	} {
		if _, err := New([]Rule{{Class: "policy"}, rule}); err == nil || !strings.Contains(err.Error(), "rule 1: ") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := New(make([]Rule, MaxRules+1)); err == nil {
		t.Error("too many rules: got no error")
	}
	var many []Rule
	for i := range maxClasses + 1 {
		many = append(many, Rule{Class: "own_" + strings.Repeat("a", i+1)})
	}
	if _, err := New(many); err == nil {
		t.Error("too many classes: got no error")
	}
}

// The table is fast because most regular expressions are not tried: each must need some word.
func TestEveryPhraseOfTheTableNeedsAWord(t *testing.T) {
	for _, r := range classifier(t).rules {
		for _, p := range r.text {
			if p.needs == nil {
				t.Errorf("%s: %s", r.class, p.re)
			}
		}
	}
}

// What a phrase needs must not hide that it fits.
func TestNeedsHideNothing(t *testing.T) {
	c := classifier(t)
	for _, tt := range replies {
		text := plain(nil, tt.text)
		var grams trigrams
		grams.addAll(text)
		for _, r := range c.rules {
			for _, p := range r.text {
				if p.re.Match(text) != p.fits(text, &grams) {
					t.Errorf("%q fits %s, and it is not seen", text, p.re)
				}
			}
		}
	}
}

func TestAlternatives(t *testing.T) {
	for pattern, want := range map[string]string{
		`a|b`:           `a b`,
		`a(b|c)|d`:      `a(b|c) d`,
		`a\|b|[|]|[]|]`: `a\|b [|] []|]`,
		`a`:             `a`,
		`(a|(b|c))`:     `(a|(b|c))`,
	} {
		if got := strings.Join(alternatives(pattern), " "); got != want {
			t.Errorf("%s: got %s, want %s", pattern, got, want)
		}
	}
}

func FuzzClass(f *testing.F) {
	for _, tt := range replies {
		f.Add(tt.code, tt.enhanced, tt.text, false)
	}
	c := classifier(f)
	known := make(map[Class]bool)
	for _, class := range c.Classes() {
		known[class] = true
	}
	f.Fuzz(func(t *testing.T, code int, enhanced, text string, isLocal bool) {
		if got := c.Class(Reply{Code: code, Enhanced: enhanced, Text: text, Local: isLocal}); !known[got] {
			t.Errorf("got %q", got)
		}
	})
}

func BenchmarkClass(b *testing.B) {
	c := classifier(b)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		tt := replies[i%len(replies)]
		c.Class(Reply{Code: tt.code, Enhanced: tt.enhanced, Text: tt.text})
	}
}
